"""A method that weighs prompts and responses apart, in the trainer: it knows which is which from TRL's own column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from live_truth import Update, assert_same, moved
from tokenpriority.errors import InvalidParameter
from tokenpriority_trainer import Weighting

ROWS = [
    {"prompt": "def add(a, b):\n", "completion": "    return a + b\n"},
    {"prompt": "import os\n", "completion": "print(os.name)\n"},
    {"prompt": "x =", "completion": " 1\n"},
]
WEIGHTS = {"lambda_p": 0.5, "lambda_r": 2.0}


def by_hand(model: Any, tokenizer: Any) -> Update:
    """One step of plain SGD at rate 1 on (0.5 sum_prompt nll + 2 sum_response nll) / tokens."""
    total, number = torch.zeros((), dtype=torch.float64), 0
    model = model.double()
    for row in ROWS:
        prompt, whole = (tokenizer(text)["input_ids"] for text in (row["prompt"], row["prompt"] + row["completion"]))
        ids = torch.tensor([[*whole, tokenizer.eos_token_id]])
        nll = -torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0]
        # A token over the border is the completion's.
        own = next(i for i, token in enumerate(whole) if [token] != prompt[i : i + 1])
        weights = torch.where(torch.arange(1, ids.shape[1]) < own, WEIGHTS["lambda_p"], WEIGHTS["lambda_r"])
        total, number = total + (weights * nll).sum(), number + len(nll)
    (total / number).backward()
    return {name: -parameter.grad.float() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("layout", [{}, {"packing": True, "max_length": 64}], ids=["padded", "packed"])
def test_wit_weighs_prompt_and_response(
    make_trainer: Callable[..., Any], make_model: Any, tokenizer: Any, layout: dict[str, Any]
) -> None:
    rows = 1 if layout else len(ROWS)
    settings = {"per_device_train_batch_size": rows, "completion_only_loss": False, "max_steps": 1, **layout}
    found = moved(make_trainer(ROWS, Weighting.of("wit", WEIGHTS), **settings))
    assert_same(found, by_hand(make_model(), tokenizer))


def test_without_prompts_it_says_how_to_give_them(make_trainer: Callable[..., Any], rows: Any) -> None:
    with pytest.raises(InvalidParameter, match="which tokens are the prompt"):
        make_trainer(rows, Weighting.of("wit"), max_steps=1).train()
