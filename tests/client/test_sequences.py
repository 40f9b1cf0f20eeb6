"""Every form of a sequence a caller may give, and who refuses what: the client only what it cannot encode."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tokenpriority import Client, InvalidSequence, SequenceErrors
from tokenpriority.sequences import encode_sequence
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine


def logprobs(token_ids: Any) -> np.ndarray[Any, Any]:
    """(T,) straight from the engine of the model `reference`."""
    [rows] = asyncio.run(FakeEngine().score([Job(np.array(token_ids, np.uint32))]))
    assert isinstance(rows, np.ndarray)
    return np.asarray(rows[0])


@pytest.fixture
def client(service: str) -> Iterator[Client]:
    with Client(service, retries=0) as connected:
        yield connected


@given(
    arrays.arrays(
        arrays.integer_dtypes() | arrays.unsigned_integer_dtypes(), st.integers(0, 20), elements={"min_value": 0}
    )
)
def test_ids_of_every_integer_type_travel_as_little_endian_u4(token_ids: Any) -> None:
    if token_ids.size and int(token_ids.max()) >= 2**32:
        with pytest.raises(InvalidSequence, match="token_ids: values must be at least 0 and less than 4294967296"):
            encode_sequence(token_ids, 0)
        return
    for form in (token_ids, token_ids.tolist(), tuple(token_ids.tolist()), {"token_ids": token_ids}):
        item = encode_sequence(form, 0)
        assert np.frombuffer(item.fields["token_ids"], "<u4").tolist() == token_ids.tolist()
        assert item.tokens == len(token_ids)


def test_the_callers_array_is_not_kept() -> None:
    token_ids = np.array([1, 2, 3], "<u4")
    item = encode_sequence(token_ids, 0)
    token_ids[0] = 9
    assert item.token_ids is not None
    assert item.token_ids.tolist() == np.frombuffer(item.fields["token_ids"], "<u4").tolist() == [1, 2, 3]
    token_ids[1] = 8  # and stays the caller's to write


def test_every_form_of_a_sequence(client: Client) -> None:
    ids = [104, 105, 33]
    forms: list[Any] = [
        ids,
        tuple(ids),
        np.array(ids, np.int64),
        np.array(ids, np.uint8),
        {"token_ids": ids},
        {"token_ids": np.array(ids, ">i4"), "id": "named"},
        {"token_ids": ids, "mask": [True, True, True]},
    ]
    results = client.score(forms)
    assert [scores.id for scores in results] == [0, 1, 2, 3, 4, "named", 6]
    for scores in results:
        np.testing.assert_array_equal(scores.token_ids, ids)
        np.testing.assert_array_equal(scores.priorities, [0, 1, 1])
    text, chat, pair = client.score(
        ["hi!", {"messages": [{"role": "assistant", "content": "hi"}]}, {"prompt": "hi", "completion": "!"}]
    )
    np.testing.assert_array_equal(text.logprobs, logprobs(text.token_ids))
    assert len(text.token_ids) == 3
    assert chat.priorities.sum() > 0
    np.testing.assert_array_equal(pair.token_ids, text.token_ids)
    np.testing.assert_array_equal(pair.priorities, [0, 0, 1])


@pytest.mark.parametrize("mask", [[1, 0, 1, 1], np.array([1, 0, 1, 1], np.int32), np.array([True, False, True, True])])
def test_masks_of_every_type(client: Client, mask: Any) -> None:
    [scores] = client.score([{"token_ids": [9, 8, 7, 6], "mask": mask}])
    np.testing.assert_array_equal(scores.priorities, [0, 0, 1, 1])


def test_spans_take_numpy_numbers(client: Client) -> None:
    span = {"start": np.int64(1), "end": np.int64(3), "priority": np.float32(-0.5)}
    [scores] = client.score([{"token_ids": [9, 8, 7, 6], "spans": [span]}])
    np.testing.assert_array_equal(scores.priorities, np.array([0, -0.5, -0.5, 1], np.float32))


def test_offsets_say_which_characters_a_token_stands_for(client: Client) -> None:
    text, ids = client.score(["aé!", [1, 2]], offsets=True)
    assert text.text == "aé!"
    assert text.offsets is not None
    assert text.offsets.shape == (4, 2)
    assert [text.text[start:end] for start, end in text.offsets.tolist()] == ["a", "é", "é", "!"]
    assert ids.offsets is None
    assert ids.text is None


def test_both_halves_of_a_partial_failure_are_kept(client: Client) -> None:
    with pytest.raises(SequenceErrors) as caught:
        client.score([[1, 2], [1, 99999], "ok", [], [3, 4]])
    assert sorted(caught.value.failures) == [1, 3]
    assert all(isinstance(error, InvalidSequence) for error in caught.value.failures.values())
    assert "99999" in str(caught.value.failures[1])
    scored = caught.value.results
    assert [s.id if s else None for s in scored] == [0, None, 2, None, 4]
    np.testing.assert_array_equal(scored[4].logprobs, logprobs([3, 4]))


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        (None, "got NoneType"),
        (5, "got int"),
        ([1.5, 2.0], "token_ids: must hold integers, got float64"),
        ([[1, 2], [3, 4]], r"token_ids: must be 1-D, got shape \(2, 2\)"),
        ([[1, 2], [3]], "token_ids: must be a 1-D array or list"),
        ([True, False], "token_ids: must hold integers, got bool"),
        ([1, -1], "at least 0 and less than 4294967296, got -1"),
        ([1, 2**32], "less than 4294967296, got 4294967296"),
        ([1, 2**80], "token_ids: must hold integers, got object"),
        ([1, None], "token_ids: must hold integers, got object"),
        ({"token_ids": [1, 2], "mask": [0.5, 1.0]}, "mask: must hold integers, got float64"),
        ({"token_ids": [1, 2], "mask": [0, 256]}, "mask: values must be at least 0 and less than 256, got 256"),
        ({"token_ids": [1, 2], "id": 1.5}, "id: must be a str or an int, got 1.5"),
        ({"token_ids": [1, 2], "spans": [{"start": object()}]}, "object has no form on the wire"),
    ],
)
def test_what_cannot_be_encoded_is_that_sequences_error(client: Client, sequence: Any, message: str) -> None:
    with pytest.raises(SequenceErrors, match=message) as caught:
        client.score([[1, 2], sequence])
    assert list(caught.value.failures) == [1]
    assert caught.value.results[0] is not None


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ({"token_ids": [1], "tokens": [1]}, "tokens"),
        ({"text": "a", "token_ids": [1]}, "exactly one form"),
        ({"token_ids": [1, 2], "mask": [1]}, "mask"),
        ({"token_ids": [1, 2], "mask": [2, 1]}, "mask"),
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": b"123"}, "token_ids: 3 bytes is not a multiple of 4"),
        ({}, "exactly one form"),
    ],
)
def test_what_can_be_encoded_is_the_servers_to_judge(client: Client, sequence: Any, message: str) -> None:
    with pytest.raises(SequenceErrors, match=message):
        client.score([sequence])


@pytest.mark.parametrize("sequences", ["text", b"bytes", {"text": "a"}, np.array([1, 2, 3])])
def test_one_sequence_in_place_of_several_is_refused(client: Client, sequences: Any) -> None:
    with pytest.raises(TypeError, match="put it in a list"):
        client.score(sequences)
    with pytest.raises(TypeError, match="put it in a list"):
        client.score_many(sequences)


def test_the_callers_iterable_is_read_in_its_thread_and_may_use_the_client(client: Client) -> None:
    def sequences() -> Iterator[Any]:
        for n in (1, 2):
            assert threading.current_thread() is threading.main_thread()  # in the loop's the next line waits for ever
            [scores] = client.score([[n, n + 1]])
            yield scores.token_ids[::-1]

    assert [scores.token_ids.tolist() for scores in client.score(sequences())] == [[2, 1], [3, 2]]


def test_arrays_cannot_be_written(client: Client) -> None:
    [scores] = client.score([[1, 2, 3]], signals=["rank"])
    for array in (scores.token_ids, scores.logprobs, scores.priorities, scores.signals["rank"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
