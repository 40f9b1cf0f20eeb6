"""The two formats carry the same things, and a decoder's complaint names field, value and limit."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import wire
from tokenpriority.errors import ERROR_TYPES, ApiError, InvalidRequest, MalformedBody, error_class
from tokenpriority.schema import PriorityRequest, RequestEnvelope, SequenceItem

FLOATS = st.lists(st.floats(width=32, allow_infinity=False), max_size=30)


@settings(max_examples=100, deadline=None)
@given(FLOATS, st.sampled_from([wire.JSON, wire.MSGPACK]))
def test_float_arrays_survive_both_formats(values: list[float], media_type: str) -> None:
    array = np.array(values, np.float32)
    body = wire.encode({"x": wire.pack(array, wire.F4, media_type)}, media_type)
    library: Any = msgspec.json if media_type == wire.JSON else msgspec.msgpack
    back = wire.unpack(library.decode(body)["x"], wire.F4, "x")
    np.testing.assert_array_equal(back, array)
    assert back.dtype == np.dtype("<f4")


def test_msgpack_ids_are_raw_little_endian_words() -> None:
    assert wire.pack(np.array([1, 258], np.int64), wire.U4) == b"\x01\0\0\0\x02\x01\0\0"


def test_truncated_array_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="token_ids: 5 bytes is not a multiple of 4"):
        wire.unpack(b"12345", wire.U4, "token_ids")


@pytest.mark.parametrize("media_type", [wire.JSON, wire.MSGPACK])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"sequences": []}, ["sequences", "length >= 1", "[]"]),
        ({"sequences": [{}], "modell": "x"}, ["unknown field `modell`", "known fields: sequences, model"]),
        ({"sequences": [{}], "model": 3}, ["model", "`str`", "3"]),
        ({"sequences": [{}], "signals": ["entropy", 5]}, ["signals[1]", "`str`", "5"]),
        ({"sequences": [{}], "method": {"name": "a", "extra": 1}}, ["method", "unknown field `extra`"]),
        ({"sequences": [{}], "method": {"name": ""}}, ["method.name", "length >= 1"]),
        ({}, ["missing required field `sequences`"]),
        ([1], ["body", "`object`"]),
    ],
)
def test_envelope_errors(media_type: str, body: Any, words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wire.decode(wire.encode(body, media_type), RequestEnvelope, media_type)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b'{"sequences":[{"text":"a"}],"method":{"name":5},"method":3}',
        b'{"sequences":[{"text":"a"}],"signals":["a",1],"signals":[]}',
        b'{"sequences":[{"text":"a"}],"model":5,"model":"x"}',
    ],
)
def test_a_key_that_stands_twice_is_an_error_of_the_client(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Expected"):
        wire.decode(body, RequestEnvelope, wire.JSON)


def test_a_msgpack_key_that_is_no_string_names_the_field() -> None:
    with pytest.raises(InvalidRequest, match=r"^sequence: Expected `str`, got `int`"):
        wire.decode(msgspec.msgpack.encode({1: 2}), SequenceItem, what="sequence")


@pytest.mark.parametrize("media_type", [wire.JSON, wire.MSGPACK])
def test_a_bad_sequence_leaves_the_envelope_whole(media_type: str) -> None:
    body = wire.encode({"sequences": [{"text": 1}, {"text": "ok"}]}, media_type)
    envelope = wire.decode(body, RequestEnvelope, media_type)
    with pytest.raises(InvalidRequest, match=r"text: Expected `str`, got `int`, got 1"):
        wire.decode(envelope.sequences[0], SequenceItem, media_type)
    assert wire.decode(envelope.sequences[1], SequenceItem, media_type).text == "ok"


@pytest.mark.parametrize("media_type", [wire.JSON, wire.MSGPACK])
@pytest.mark.parametrize("body", [b"", b"{", b"\xc1", b"\xff\xff", b"[" * 100_000, b"\x91" * 100_000])
def test_malformed_bodies(media_type: str, body: bytes) -> None:
    with pytest.raises((MalformedBody, InvalidRequest)):
        wire.decode(body, PriorityRequest, media_type)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.sampled_from([wire.JSON, wire.MSGPACK]))
def test_random_bytes_never_raise_anything_else(body: bytes, media_type: str) -> None:
    try:
        wire.decode(body, PriorityRequest, media_type)
    except (MalformedBody, InvalidRequest):
        return


def test_every_error_has_one_type_and_status() -> None:
    assert set(ERROR_TYPES) == {cls.type for cls in ERROR_TYPES.values()}
    assert {cls.status for cls in ERROR_TYPES.values()} == {400, 401, 403, 404, 413, 422, 429, 500, 503}
    for cls in ERROR_TYPES.values():
        assert error_class(cls.type, 0) is cls
    assert error_class(None, 429).type == "overloaded"
    assert error_class("from a proxy", 502).type == "unavailable"
    assert error_class(None, 501).type == "internal_error"


def test_errors_are_picklable_with_all_they_carry() -> None:
    import pickle

    for cls in ERROR_TYPES.values():
        error = cls("m", request_id="r", retry_after=1.5)
        back = pickle.loads(pickle.dumps(error))
        assert isinstance(back, ApiError)
        assert (type(back), back.message, back.request_id, back.retry_after) == (cls, "m", "r", 1.5)
