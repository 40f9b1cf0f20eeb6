"""Which tokens are the prompt, told to a method that weighs them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

WIT = {"name": "wit", "params": {"lambda_p": 0.25, "lambda_r": 2.0}}
MESSAGES = [
    {"role": "user", "content": "2+2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "sure?"},
    {"role": "assistant", "content": "yes"},
]


def test_the_prompt_is_what_comes_before_the_completion(torch_server: Any, tokenizer: Any) -> None:
    prompt, completion = "def add(a, b):\n", "    return a + b\n"
    ids, head = tokenizer(prompt + completion)["input_ids"], tokenizer(prompt)["input_ids"]
    start = next(i for i, (a, b) in enumerate(zip([*head, None], ids, strict=False)) if a != b)
    form = {"prompt": prompt, "completion": completion}
    by_default, whole, masked = torch_server.score(
        form, {**form, "score_from": 0}, {**form, "mask": [i % 2 for i in range(len(ids))]}, method=WIT
    )
    both = [0.0, *[0.25] * (start - 1), *[2.0] * (len(ids) - start)]
    assert by_default["priorities"] == [0.0] * start + [2.0] * (len(ids) - start), "the completion alone, as ever"
    assert whole["priorities"] == both
    assert masked["priorities"] == [weight if i % 2 else 0.0 for i, weight in enumerate(both)]


def test_the_prompt_is_what_the_assistant_did_not_say(torch_server: Any) -> None:
    [default, whole] = torch_server.score({"messages": MESSAGES}, {"messages": MESSAGES, "score_from": 0}, method=WIT)
    [uniform] = torch_server.score({"messages": MESSAGES})
    said = np.array(uniform["priorities"]) == 1
    assert 0 < said.sum() < len(said) - 1
    assert default["priorities"] == np.where(said, 2.0, 0.0).tolist(), "the assistant's turns alone, as ever"
    assert whole["priorities"] == [0.0, *np.where(said, 2.0, 0.25)[1:].tolist()]


@pytest.mark.parametrize("item", [{"token_ids": [5, 6, 7]}, {"text": "abc"}], ids=["token_ids", "text"])
def test_a_sequence_that_does_not_tell_its_prompt_is_refused_by_itself(serve: Any, probe: Any, item: Any) -> None:
    with serve({"reference": probe}) as server:
        bad, good = server.score(item, {"prompt": "2 + 2 =", "completion": " 4"}, method=WIT)
    [field] = item
    message = f"{field}: the method must know which tokens are the prompt; give messages or prompt + completion"
    assert bad["error"] == {"type": "invalid_sequence", "message": message}
    assert "error" not in good
    assert len(probe.jobs) == 1, "the refused sequence costs no work"
