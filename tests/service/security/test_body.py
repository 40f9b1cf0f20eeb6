"""What a body may hold before anything is built from it: its values and its depth, counted right in both formats."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mutants import Nest, pack
from refusals import check
from tokenpriority import wire
from tokenpriority.errors import MalformedBody, TooLarge
from tokenpriority_service.configuration.settings import ServerSettings, Settings
from tokenpriority_service.web.body import MAX_DEPTH, max_values, measure

LIMIT = max_values(ServerSettings().max_request_tokens)
GOOD = {"id": "good", "token_ids": [1, 2, 3]}
TEXT = st.text(st.sampled_from('ab"\\[]{},:\n\0é😀'), max_size=40)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(TEXT, inner, max_size=20),
    max_leaves=60,
)
BINARY = st.recursive(
    st.binary(max_size=300) | st.text(max_size=300) | st.datetimes(timezones=st.just(UTC)) | st.integers(-(2**31), 0),
    lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.integers(-9, 300) | TEXT, inner, max_size=8),
    max_leaves=20,
)
MEDIA = pytest.mark.parametrize("media", [wire.JSON, wire.MSGPACK])


def values(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(values(key) + values(each) for key, each in value.items())
    return 1 + sum(map(values, value)) if isinstance(value, list) else 1


def depth(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


def counted(body: bytes, media: str, value: Any) -> None:
    """The count is `value`'s: with that limit it passes, with one less it does not."""
    measure(body, media, values(value))
    with pytest.raises(TooLarge):
        measure(body, media, values(value) - 1)


@given(value=VALUES, ascii_only=st.booleans(), indent=st.sampled_from([None, 1]))
def test_json_is_counted_right(value: Any, ascii_only: bool, indent: int | None) -> None:
    """What is within strings counts for nothing; an empty container counts as if it held a value."""
    body = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    most = values(value) + empties(value)
    measure(body, wire.JSON, most)
    with pytest.raises(TooLarge):
        measure(body, wire.JSON, most - 1)


def empties(value: Any) -> int:
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else ()
    return int(value in ([], {})) + sum(map(empties, inner))


@given(value=VALUES)
def test_msgpack_is_counted_right(value: Any) -> None:
    counted(msgspec.msgpack.encode(value), wire.MSGPACK, value)


@given(value=BINARY)
def test_every_kind_of_msgpack_is_counted_right(value: Any) -> None:
    counted(msgspec.msgpack.encode(value), wire.MSGPACK, value)
    counted(pack(value), wire.MSGPACK, value)


@pytest.mark.parametrize("size", [0, 1, 2, 4, 8, 15, 16, 17, 31, 32, 255, 256, 65_535, 65_536])
def test_every_width_of_msgpack_is_stepped_over(size: int) -> None:
    kinds = [b"x" * size, "x" * size, [0] * size, dict.fromkeys(range(size), 0), msgspec.msgpack.Ext(5, b"x" * size)]
    for kind in kinds:
        counted(msgspec.msgpack.encode([kind, kind, 7]), wire.MSGPACK, [kind, kind, 7])


@given(body=st.binary(max_size=100))
def test_any_bytes_are_measured(body: bytes) -> None:
    """What is not of the format passes or is refused; nothing else is raised, and its decoder decides."""
    for media in (wire.JSON, wire.MSGPACK):
        try:
            measure(body, media, 20)
        except (TooLarge, MalformedBody):
            continue


@MEDIA
@pytest.mark.parametrize("maps", [False, True])
def test_the_depth_is_exact(media: str, maps: bool) -> None:
    for nested in (MAX_DEPTH - 1, MAX_DEPTH, MAX_DEPTH + 1):
        value: Any = 0
        for _ in range(nested):
            value = {"a": value} if maps else [value]
        body = wire.encode(value, media)
        assert depth(value) == nested
        if nested <= MAX_DEPTH:
            measure(body, media, LIMIT)
        else:
            with pytest.raises(MalformedBody, match=f"{media} may nest at most {MAX_DEPTH} deep"):
                measure(body, media, LIMIT)


DEEP: dict[str, Callable[[Any], Any]] = {
    "params": lambda inner: {"sequences": [GOOD], "method": {"name": "uniform", "params": {"a": inner}}},
    "an unknown field": lambda inner: {"x": inner, "sequences": [GOOD]},
    "a field of another type": lambda inner: {"sequences": [GOOD], "model": inner},
    "a sequence": lambda inner: {"sequences": [GOOD, inner]},
    "an unknown field of a sequence": lambda inner: {"sequences": [{"x": inner}, GOOD]},
    "a message": lambda inner: {"sequences": [{"messages": [{"role": "user", "content": inner}]}]},
}


@MEDIA
@pytest.mark.parametrize("place", DEEP)
def test_deep_bodies_are_refused_whole(server: Any, media: str, place: str) -> None:
    for nested in (MAX_DEPTH, 900, 1_000, 100_000):
        for maps in (False, True):
            if media == wire.JSON:
                mark = '"HERE"'
                inner = '{"a":' * nested + "0" + "}" * nested if maps else "[" * nested + "]" * nested
                body = json.dumps(DEEP[place]("HERE")).replace(mark, inner).encode()
            else:
                body = pack(DEEP[place](Nest(nested, maps)))
            check(server.post(body, media=media, accept=wire.JSON), 400, "malformed_body", [media, "64 deep"])


def test_what_is_deep_enough_is_not_deep(server: Any) -> None:
    """The arguments of tool calls nest too."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": [{"b": {"c": [1, [2, [3]]]}}]}}}
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]
    assert "error" not in server.score({"messages": talk})[0]


@MEDIA
def test_too_many_values_are_refused_before_they_are_built(serve: Any, probe: Any, media: str) -> None:
    few = ServerSettings(max_request_tokens=20, max_queued_tokens=40)
    limit = max_values(few.max_request_tokens)
    with serve({"reference": probe}, Settings(server=few)) as server:
        empty: tuple[Any, ...] = ([], {}, 0, "")
        for inner in empty:
            for name in ("sequences", "method", "x"):
                body = wire.encode({name: [inner] * (limit + 1)}, media)
                check(
                    server.post(body, media=media, accept=wire.JSON), 413, "too_large", ["body", str(limit), "values"]
                )
        assert server.post({"sequences": [GOOD]}).status_code == 200


BOMBS = """
import resource
from tokenpriority import wire
from tokenpriority.errors import ApiError
from tokenpriority_service.requests.door import Door
from tokenpriority_service.configuration.settings import ServerSettings

door = Door(ServerSettings(), None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for media, begin, member, count in [
    (wire.MSGPACK, b"\\x81\\xa9sequences\\xdd\\x01\\xf0\\x00\\x00", b"\\x90", 32_505_856),
    (wire.MSGPACK, b"\\x81\\xa1x\\xdd\\x01\\xf0\\x00\\x00", b"\\x80", 32_505_856),
    (wire.JSON, b'{"sequences":[', b"[],", 11_000_000),
    (wire.JSON, b'{"sequences":[', b"0,", 16_000_000),
    (wire.JSON, b'{"sequences":[', b'"ab",', 6_000_000),
]:
    try:
        door.open(begin + member * count, media)
    except ApiError as error:
        print(error.status, end=" ")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_body_takes_little_more_memory_than_its_bytes() -> None:
    """Decoded, the first of them takes 2.4 GB."""
    done = subprocess.run([sys.executable, "-c", BOMBS], capture_output=True, text=True, check=True, timeout=120)
    *statuses, kibibytes = map(int, done.stdout.split())
    assert statuses == [413] * 5
    assert kibibytes < 150 * 1024  # a copy of the body or two


def test_the_last_of_equal_keys_holds(server: Any) -> None:
    json_body = (
        b'{"model":"gone","sequences":[{"token_ids":[9]}],"sequences":[{"token_ids":[1,2]}],"model":"reference"}'
    )
    write = msgspec.msgpack.encode
    pairs = [("model", "gone"), ("sequences", [{"token_ids": [9]}]), ("sequences", [{"token_ids": [1, 2]}])]
    pairs.append(("model", "reference"))
    packed = b"\x84" + b"".join(write(key) + write(value) for key, value in pairs)
    for body, media in ((json_body, wire.JSON), (packed, wire.MSGPACK)):
        response = server.post(body, media=media, accept=wire.JSON)
        assert response.json()["results"][0]["token_ids"] == [1, 2]


HOSTILE = {
    "a list longer than the body": b"\x81\xa9sequences\xdd\xff\xff\xff\xff",
    "a map longer than the body": b"\xdf\xff\xff\xff\xff",
    "binary longer than the body": b"\x81\xa5model\xc6\xff\xff\xff\xff",
    "a string longer than the body": b"\x81\xa5model\xdb\xff\xff\xff\xff",
    "an extension longer than the body": b"\x81\xa5model\xc9\xff\xff\xff\xff\x01",
    "a string of no UTF-8": b"\x81\xa5model\xa2\xff\xfe",
    "a surrogate": b"\x81\xa5model\xa3\xed\xa0\x80",
    "a key of no UTF-8": b"\x81\xa2\xff\xfe\x01",
    "a key that is a map": b"\x82\xa9sequences\x91\x80\xa6method\x81\xa6params\x81\x81\x01\x01\x02",
    "a timestamp out of range": b"\x82\xa9sequences\x91\x80\xa5model\xc7\x0c\xff" + b"\xff" * 12,
    "the byte without a meaning": b"\x81\xa9sequences\xc1",
    "nothing": b"",
    "two bodies": msgspec.msgpack.encode({"sequences": [GOOD]}) * 2,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_msgpack_that_lies(server: Any, name: str) -> None:
    check(server.post(HOSTILE[name], media=wire.MSGPACK, accept=wire.JSON), 400, "malformed_body", [wire.MSGPACK])


@pytest.mark.parametrize("value", ["1e999", "NaN", "Infinity", "9" * 5000, '"\\ud800"', "01", "0x1", "'a'", "[1,]"])
def test_json_that_is_none(server: Any, value: str) -> None:
    body = b'{"sequences":[{"token_ids":[1]}],"method":{"params":{"a":%s}}}' % value.encode()
    check(server.post(body), 400, "malformed_body", [wire.JSON])


@pytest.mark.parametrize("priority", [float("nan"), float("inf"), float("-inf")])
def test_a_label_is_a_number(server: Any, priority: float, decode: Any) -> None:
    item = {"token_ids": [1, 2], "spans": [{"start": 0, "end": 1, "priority": priority}]}
    result = decode(server.post({"sequences": [item]}, media=wire.MSGPACK))["results"][0]
    assert "spans[0].priority" in result["error"]["message"]
    assert str(priority) in result["error"]["message"]
