"""Conversations under `assistant_only_loss`: weights count on what the assistant says, and only there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, pairwise
from typing import Any

import pytest
import torch

from live_truth import assert_same, moved

MARKED = (
    "{% for m in messages %}<{{ m['role'] }}>{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}"
)
TALKS = [
    ["def add(a, b):", "return a + b", "and in JSON?", "json.dumps(a + b)"],
    ["import os", "print(os.name)", "again", "print(os.name, file=fp)", "why?", "obj"],
]
WEIGHTS = [1.5, -0.5, 0.0, 2.0, -1.0]


def said(tokenizer: Any, talk: list[str]) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation and which of them hold a character of the assistant's turns, their ends included."""
    text, turns = "", []
    for number, content in enumerate(talk):
        text += ("<user>", "<assistant>")[number % 2]
        turns.append((len(text), len(text := f"{text}{content}<|end|>"), number % 2 == 1))
    encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    own = [any(mine and a < end and b > start for start, end, mine in turns) for a, b in encoded["offset_mapping"]]
    return encoded["input_ids"], own


def charges(model: Any, ids: list[int], weights: list[float], own: list[bool]) -> list[torch.Tensor]:
    """What each token of the assistant's costs, but for a first one, which nothing predicts."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    logprobs = torch.log_softmax(logits, -1).gather(-1, torch.tensor(ids)[1:, None])[:, 0]
    each = [pair for pair, mine in zip(zip(logprobs, weights[1:], strict=True), own[1:], strict=True) if mine]
    return [-weight * lp if weight > 0 else weight * torch.log(1 - lp.exp()) for lp, weight in each]


@pytest.mark.parametrize("layout", [{}, {"packing": True, "max_length": 256}], ids=["padded", "packed"])
@pytest.mark.parametrize("column", [True, False], ids=["a column", "uniform"])
def test_the_step_is_that_of_the_assistants_tokens_alone(
    make_trainer: Callable[..., Any],
    make_model: Any,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    layout: dict[str, Any],
    column: bool,
) -> None:
    monkeypatch.setattr(tokenizer, "chat_template", MARKED)
    rows: list[dict[str, Any]] = []
    costs: list[torch.Tensor] = []
    model = make_model().double()
    for talk in TALKS:
        ids, own = said(tokenizer, talk)
        assert sum(one != other for one, other in pairwise(own)) == len(talk) - 1  # every turn is there
        # What others say would weigh the most.
        weights = [WEIGHTS[i % 5] if mine else 50.0 for i, mine in enumerate(own)] if column else [1.0] * len(ids)
        costs += charges(model, ids, weights, own)
        turns = zip(cycle(["user", "assistant"]), talk, strict=False)
        rows.append({"messages": [{"role": role, "content": content} for role, content in turns]})
        rows[-1] |= {"priorities": weights} if column else {}
    loss = torch.stack(costs).mean()
    loss.backward()
    size = {"per_device_train_batch_size": 1 if layout else len(rows)}
    trainer = make_trainer(rows, assistant_only_loss=True, **size, **layout)
    assert_same(moved(trainer), {name: -p.grad.float() for name, p in model.named_parameters()})
    assert trainer.state.log_history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
