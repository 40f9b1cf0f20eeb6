"""Bodies nobody meant: any bytes at all are answered, in time, and never with a 500."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority import wire

SEEDS: list[dict[str, Any]] = [
    {
        "sequences": [
            {"id": "a", "token_ids": [1, 2, 3, 4], "mask": [0, 1, 1, 0]},
            {"token_ids": b"\1\0\0\0\2\0\0\0", "score_from": 1, "spans": [{"start": 0, "end": 1, "priority": -1.0}]},
            {"text": "def f():\n    return 1\n", "spans": [{"start": 4, "end": 7, "priority": 2.0, "unit": "char"}]},
        ],
        "method": {"name": "prift_mass", "params": {"tau": 0.5}},
        "signals": ["entropy", "rank"],
        "model": "reference",
        "offsets": True,
    },
    {
        "sequences": [
            {
                "messages": [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yo"}],
                "spans": [{"start": 0, "end": 1, "priority": 1, "message": 1}],
            },
            {"prompt": "a", "completion": "b"},
            {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        ],
        "method": {"name": "token_cleaning", "params": {"base": "base", "keep": 0.5}},
    },
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MEDIA = st.sampled_from([wire.JSON, wire.MSGPACK])


def answered(response: Any) -> None:
    assert response.status_code in (200, 400, 404, 413, 422), (response.status_code, response.content)
    body = {wire.JSON: msgspec.json, wire.MSGPACK: msgspec.msgpack}[response.headers["content-type"]].decode(
        response.content
    )
    assert ("results" in body) == (response.status_code == 200)
    for result in body.get("results", ()):
        assert ("error" in result) != ("priorities" in result)


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=200), media=MEDIA, accept=MEDIA)
def test_any_bytes(torch_server: Any, body: bytes, media: str, accept: str) -> None:
    answered(torch_server.post(body, media=media, accept=accept))


@settings(max_examples=250, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data(), media=MEDIA, accept=MEDIA)
def test_mutated_bytes(torch_server: Any, seed: Any, data: st.DataObject, media: str, accept: str) -> None:
    body = bytearray(wire.encode(seed, media))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        cut = data.draw(st.integers(0, 3))
        body[place : place + cut] = data.draw(st.binary(max_size=3))
        body = body or bytearray(b"\0")
    answered(torch_server.post(bytes(body), media=media, accept=accept))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    head, *rest = path
    copy = value.copy()
    copy[head] = replaced(value[head], tuple(rest), new)
    return copy


@settings(max_examples=250, deadline=None)
@given(seed=st.sampled_from(SEEDS), data=st.data(), new=VALUES, accept=MEDIA)
def test_mutated_values(torch_server: Any, seed: Any, data: st.DataObject, new: Any, accept: str) -> None:
    """Right structure, wrong value somewhere: what byte mutations rarely reach."""
    path = data.draw(st.sampled_from(places(seed)))
    body = msgspec.msgpack.encode(replaced(seed, path, new))
    answered(torch_server.post(body, media=wire.MSGPACK, accept=accept))
