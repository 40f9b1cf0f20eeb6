from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority_trainer.collator import PriorityCollator
from tokenpriority_trainer.errors import WeightError


@st.composite
def labelled(draw: st.DrawFn) -> dict[str, Any]:
    """An example whose columns repeat its labels as floats, so that the batch can be compared with itself."""
    ids = draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    return {"input_ids": ids, "priorities": [float(i) for i in ids], "span_priorities": [i / 4 for i in ids]}


@given(st.lists(labelled(), min_size=1, max_size=5), st.booleans(), st.sampled_from([None, 4]))
def test_float_columns_stand_where_their_tokens_stand(
    examples: list[dict[str, Any]], padding_free: bool, multiple: int | None
) -> None:
    batch = PriorityCollator(pad_token_id=0, padding_free=padding_free, pad_to_multiple_of=multiple)(examples)
    ids = batch["input_ids"].float()
    torch.testing.assert_close(batch["priorities"], ids)
    torch.testing.assert_close(
        batch["span_priorities"], torch.where(ids > 0, ids / 4, torch.full_like(ids, math.nan)), equal_nan=True
    )


def test_columns_the_examples_lack_are_not_invented() -> None:
    batch = PriorityCollator(pad_token_id=0)([{"input_ids": [1, 2]}])
    assert set(batch) == {"input_ids", "labels", "attention_mask", "documents", "examples"}


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ({"input_ids": [1, 2]}, "'priorities' is missing"),
        ({"input_ids": [1, 2], "priorities": [1.0]}, "'priorities' has 1 values"),
        ({"input_ids": [1, 2], "priorities": [1.0, math.inf]}, "'priorities' holds an infinite value"),
    ],
)
def test_a_column_that_does_not_fit_names_the_example(second: dict[str, Any], what: str) -> None:
    with pytest.raises(WeightError, match=f"example 1 of the batch.*{what}"):
        PriorityCollator(pad_token_id=0)([{"input_ids": [1], "priorities": [1.0]}, second])


def test_a_missing_value_is_kept_as_no_number() -> None:
    batch = PriorityCollator(pad_token_id=0)([{"input_ids": [1, 2], "priorities": [0.0, None]}])
    assert math.isnan(batch["priorities"][0, 1])
