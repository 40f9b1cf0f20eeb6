from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority_trainer.collator import PriorityCollator
from tokenpriority_trainer.documents import Document, documents, place
from tokenpriority_trainer.errors import WeightError

PAD = 0
TOKENS = st.integers(1, 9)


@st.composite
def example(draw: st.DrawFn) -> dict[str, list[int]]:
    ids = draw(st.lists(TOKENS, min_size=1, max_size=9))
    kept = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    return {"input_ids": ids, "labels": [i if keep else -100 for i, keep in zip(ids, kept, strict=True)]}


EXAMPLES = st.lists(example(), min_size=1, max_size=5)
PADDINGS = st.sampled_from([None, 4])


def packed(examples: list[dict[str, list[int]]], groups: list[int]) -> list[dict[str, Any]]:
    """Rows of several examples each, as TRL's packing makes them: `groups` says how many."""
    rows, start = [], 0
    for size in groups:
        group = examples[start : start + size]
        start += size
        if group:
            row: dict[str, Any] = {key: [i for e in group for i in e[key]] for key in ("input_ids", "labels")}
            rows.append({**row, "seq_lengths": [len(e["input_ids"]) for e in group]})
    return rows


def described(found: list[Document]) -> list[tuple[list[int], list[bool]]]:
    return [(d.token_ids.tolist(), d.trained.tolist()) for d in found]


def expected(examples: list[dict[str, list[int]]]) -> list[tuple[list[int], list[bool]]]:
    return [(e["input_ids"], [False, *(label != -100 for label in e["labels"][1:])]) for e in examples]


def assert_tiles(found: list[Document], inside: np.ndarray[Any, Any]) -> None:
    covered = np.zeros(inside.shape, np.int64)
    for document in found:
        covered[document.row, document.start : document.end] += 1
    np.testing.assert_array_equal(covered, inside.astype(np.int64))


@given(EXAMPLES, PADDINGS)
def test_padded_rows_are_documents_without_their_padding(
    examples: list[dict[str, list[int]]], multiple: int | None
) -> None:
    batch = PriorityCollator(pad_token_id=PAD, pad_to_multiple_of=multiple)(examples)
    assert described(batch["documents"]) == expected(examples)
    assert_tiles(batch["documents"], batch["attention_mask"].numpy())


@given(EXAMPLES, st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_packed_rows_fall_apart_into_the_examples_they_were_packed_from(
    examples: list[dict[str, list[int]]], groups: list[int]
) -> None:
    batch = PriorityCollator(pad_token_id=PAD, padding_free=True)(packed(examples, groups))
    assert described(batch["documents"]) == expected(examples)
    assert_tiles(batch["documents"], np.ones(batch["input_ids"].shape))


@given(EXAMPLES)
def test_padding_after_flattened_documents_trains_nothing(examples: list[dict[str, list[int]]]) -> None:
    batch = PriorityCollator(pad_token_id=PAD, padding_free=True, pad_to_multiple_of=8)(examples)
    found = described(batch["documents"])
    assert found[: len(examples)] == expected(examples)
    assert all(rest == ([PAD], [False]) for rest in found[len(examples) :])


@given(EXAMPLES)
def test_position_ids_beside_a_mask_change_nothing(examples: list[dict[str, list[int]]]) -> None:
    batch = PriorityCollator(pad_token_id=PAD, return_position_ids=True)(examples)
    assert described(batch["documents"]) == expected(examples)
    assert_tiles(batch["documents"], batch["attention_mask"].numpy())


@given(EXAMPLES, st.lists(st.integers(1, 3), min_size=5, max_size=5))
def test_values_go_back_to_the_tokens_they_are_for(examples: list[dict[str, list[int]]], groups: list[int]) -> None:
    batch = PriorityCollator(pad_token_id=PAD, padding_free=True)(packed(examples, groups))
    values = [document.token_ids.astype(np.float32) / 8 - 1 for document in batch["documents"]]
    found = place(batch["documents"], values, tuple(batch["input_ids"].shape))
    trained = (batch["labels"] != -100) & (batch["position_ids"] != 0)
    np.testing.assert_array_equal(found, np.where(trained, batch["input_ids"] / 8 - 1, 0).astype(np.float32))


def batch_of(**changes: Any) -> dict[str, Any]:
    ids = torch.tensor([[1, 2, 3, 4]])
    return {"input_ids": ids, "labels": ids.clone(), **changes}


CUT = {"attention_mask": torch.tensor([[1, 1, 1, 0]]), "labels": torch.tensor([[1, 2, 3, -100]])}
"""Its last token is padding."""


def test_a_batch_that_tells_no_documents_apart_is_refused() -> None:
    with pytest.raises(WeightError, match="neither attention_mask nor position_ids"):
        documents(batch_of())


def test_a_hole_in_the_mask_is_refused() -> None:
    with pytest.raises(WeightError, match="row 0: attention_mask has a hole"):
        documents(batch_of(attention_mask=torch.tensor([[1, 0, 1, 1]])))


def test_a_label_on_the_first_token_of_a_later_document_is_refused() -> None:
    with pytest.raises(WeightError, match="row 0, token 2 begins a document but has a label"):
        documents(batch_of(position_ids=torch.tensor([[0, 1, 0, 1]])))


def test_a_label_that_no_document_covers_is_refused() -> None:
    with pytest.raises(WeightError, match="row 0, token 3 has a label but attention_mask 0; no document covers it"):
        documents(batch_of(attention_mask=CUT["attention_mask"]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_names_the_document_and_the_token(bad: float) -> None:
    found = documents(batch_of(**CUT))
    with pytest.raises(WeightError, match=r"row 0, tokens 0 to 3 .* weight of its token 2"):
        place(found, [np.array([0, 1, bad], np.float32)], (1, 4))


def test_a_value_on_an_untrained_token_may_be_anything() -> None:
    labels = torch.tensor([[1, -100, 3, -100]])
    found = documents(batch_of(labels=labels, attention_mask=torch.tensor([[1, 1, 1, 0]])))
    placed = place(found, [np.array([np.nan, np.inf, 2], np.float32)], (1, 4))
    np.testing.assert_array_equal(placed, [[0, 0, 2, 0]])


@pytest.mark.parametrize("values", [[], [np.zeros(3, np.float32)] * 2])
def test_a_missing_or_extra_document_is_refused(values: list[Any]) -> None:
    found = documents(batch_of(**CUT))
    with pytest.raises(WeightError, match=f"1 documents in the batch but weights for {len(values)}"):
        place(found, values, (1, 4))


def test_values_of_another_length_are_refused() -> None:
    found = documents(batch_of(**CUT))
    with pytest.raises(WeightError, match=r"3 tokens but weights of shape \(2,\)"):
        place(found, [np.zeros(2, np.float32)], (1, 4))
