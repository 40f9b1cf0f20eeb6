"""Which sequences a batch holds where the caller does not say: those without doubt, and no others."""

from __future__ import annotations

import threading
from collections import UserDict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import Client
from tokenpriority.batches import PACKED, batch_sequences

ROWS = st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=9), min_size=1, max_size=5)


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.url, retries=0) as connected:
        yield connected


def ids(sequences: list[Any]) -> list[list[int]]:
    return [np.asarray(sequence).tolist() for sequence in sequences]


@given(ROWS, st.sampled_from(["left", "right"]), st.sampled_from([list, np.array, torch.tensor]), st.booleans())
def test_padding_is_cut_and_nothing_else(rows: list[list[int]], side: str, array: Any, boolean: bool) -> None:
    width = max(map(len, rows))
    pads = [[0] * (width - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    padded = [pad + row if side == "left" else row + pad for row, pad in zip(rows, pads, strict=True)]
    mask = [pad + one if side == "left" else one + pad for one, pad in zip(ones, pads, strict=True)]
    masks = [[bool(value) for value in row] for row in mask] if boolean else mask
    batch = {"input_ids": array(padded), "attention_mask": array(masks), "labels": array(padded)}
    assert ids(batch_sequences(batch)) == rows
    assert ids(batch_sequences(UserDict(batch))) == rows
    del batch["attention_mask"]
    assert ids(batch_sequences(batch)) == padded


def test_rows_of_a_list_may_differ_in_length() -> None:
    assert ids(batch_sequences({"input_ids": [[1, 2, 3], [4]]})) == [[1, 2, 3], [4]]
    assert ids(batch_sequences({"input_ids": [[1, 2, 3], [4]], "attention_mask": [[1, 1, 0], [1]]})) == [[1, 2], [4]]


@pytest.mark.parametrize("batch", [[], [[1, 2], (3,)], ("a", {"text": "b"}, np.array([1, 2]), torch.tensor([3]))])
def test_a_list_of_sequences_is_taken_as_it_is(batch: Any) -> None:
    taken = batch_sequences(batch)
    assert len(taken) == len(batch)
    assert all(one is other for one, other in zip(taken, batch, strict=True))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1, 2, 3], "a batch that is a list"),
        ([np.zeros((2, 3), int)], "a batch that is a list"),
        (np.zeros((2, 3), int), "a batch that is a ndarray"),
        ("text", "a batch that is a str"),
        (iter([[1, 2]]), "a batch that is a list_iterator"),
        ({"text": ["a"]}, "a batch that is a dict"),
        ({"input_ids": [1, 2, 3]}, r"input_ids whose rows have the shape \(\)"),
        ({"input_ids": np.zeros((1, 2, 3), int)}, r"input_ids whose rows have the shape \(2, 3\)"),
        ({"input_ids": 5}, "input_ids that is a int"),
        ({"input_ids": np.array(5)}, "input_ids that is a ndarray"),
        *[({"input_ids": [[1, 2]], name: [[0, 1]]}, f"a batch with {name!r}, which may be packed") for name in PACKED],
    ],
)
def test_another_batch_needs_sequences(batch: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^sequences: cannot be told from {message}.* else pass sequences="):
        batch_sequences(batch)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 0, 1], [1, 1, 1]], "row 0: has a masked position between two that are not"),
        ([[1, 1, 1], [0, 0, 0]], "row 1: every position is masked"),
        ([[1, 1, 2], [1, 1, 1]], r"row 0: values must be 0 or 1, got \[1, 1, 2\]"),
        ([[1, 1], [1, 1]], "row 0: 3 values are expected, got 2"),
        ([[1, 1, 1]], "2 rows are expected, as in input_ids, got 1"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(mask: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^attention_mask: {message}"):
        batch_sequences({"input_ids": [[1, 2, 3], [4, 5, 6]], "attention_mask": mask})


def test_prefetch_finds_the_sequences_itself(server: Any, client: Client) -> None:
    loader = [{"input_ids": torch.tensor([[1, 2, 3], [4, 5, 0]]), "attention_mask": torch.tensor([[1] * 3, [1, 1, 0]])}]
    [(batch, scores)] = client.prefetch(loader)
    assert batch is loader[0]
    assert [s.token_ids.tolist() for s in scores] == [[1, 2, 3], [4, 5]]
    assert server.requests[0].method.name == "uniform"
    [(_, scores)] = client.prefetch([[[7, 8]]], depth=1)
    assert [s.token_ids.tolist() for s in scores] == [[7, 8]]
    with pytest.raises(TypeError, match="pass sequences="):
        next(client.prefetch([{"text": ["a"]}]))


def test_the_sequences_of_a_batch_are_read_in_the_loaders_thread_and_may_use_the_client(client: Client) -> None:
    def reversed_rows(batch: list[list[int]]) -> Iterator[Any]:
        for row in batch:
            assert threading.current_thread().name == "tokenpriority-prefetch"  # the loop's would wait for itself
            [scores] = client.score([row])
            yield scores.token_ids[::-1]

    [(_, scores)] = client.prefetch([[[1, 2], [3, 4, 5]]], sequences=reversed_rows)
    assert [s.token_ids.tolist() for s in scores] == [[2, 1], [5, 4, 3]]
    with pytest.raises(TypeError, match="put it in a list"):
        next(client.prefetch([[[1, 2]]], sequences=lambda batch: "text"))
