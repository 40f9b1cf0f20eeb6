"""Bodies that are nearly requests: mutations of valid ones, of their values, of their msgpack and of their bytes.

Everything follows from one `random.Random`: the same seed gives the same bodies.
"""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec

from tokenpriority import schema
from tokenpriority.methods import describe

TALK = [{"role": "user", "content": "hé"}, {"role": "assistant", "content": "yo"}]
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
            {"messages": TALK, "spans": [{"start": 0, "end": 1, "priority": 1, "message": 1}]},
            {"prompt": "a", "completion": "b"},
            {"prompt": TALK[:1], "completion": TALK[1:]},
        ],
        "method": {"name": "token_cleaning", "params": {"base": "base", "keep": 0.5}},
        "service_class": "bulk",
        "cached_only": False,
    },
    {"sequences": [{"id": 7, "token_ids": list(range(40)), "mask": b"\0" * 20 + b"\1" * 20}]},
]
STRUCTS = (schema.PriorityRequest, schema.SequenceItem, schema.Span, schema.MethodCall)
FIELDS = sorted({field for each in STRUCTS for field in each.__struct_encode_fields__})
METHODS = [each.name for each in describe().methods]
PARAMETERS = sorted({name for each in describe().methods for name in each.params.get("properties", {})})
WORDS = [
    *FIELDS,
    *METHODS,
    *PARAMETERS,
    "base",
    "reference",
    "student",
    "token",
    "char",
    "bulk",
    "",
    "\0",
    "..",
    "é" * 70,
]
NUMBERS = [0, 1, -1, 2, 127, 128, 255, 256, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)]
FLOATS = [0.0, -0.0, 0.5, 1e-320, 1e300, math.nan, math.inf, -math.inf]
DEPTHS = (2, 20, 58, 63, 64, 65, 300, 980, 1000, 3000)

Path = tuple[Any, ...]


class Mutants:
    """An endless source of bodies."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._bodies = [pack(each) for each in SEEDS]

    def msgpack(self) -> bytes:
        """One msgpack body."""
        r = self._random
        if r.random() < 0.3:
            body = bytearray(r.choice(self._bodies))
        else:
            value = self._value()
            body = bytearray(pack(value, lies=r) if r.random() < 0.3 else pack(value))
        return self._bytes(body) if r.random() < 0.5 else bytes(body)

    def json(self) -> bytes:
        """One JSON body; what JSON cannot say becomes null or base64."""
        body = bytearray(msgspec.json.encode(_sayable(self._value())))
        return self._bytes(body) if self._random.random() < 0.5 else bytes(body)

    def _value(self) -> Any:
        r, value = self._random, self._random.choice(SEEDS)
        for _ in range(r.choice((1, 1, 1, 2, 4))):
            path = r.choice(_places(value))
            value = _changed(value, path, r.choice((self._new, self._new, self._member, self._moved))(value))
        return value

    def _new(self, _whole: Any) -> Callable[[Any], Any]:
        new = self._any(3)
        return lambda _old: new

    def _member(self, _whole: Any) -> Callable[[Any], Any]:
        """One member more, less, twice or under another name."""
        r, new, name, chance = self._random, self._any(2), self._random.choice(WORDS), self._random.random()

        def change(old: Any) -> Any:
            if isinstance(old, dict) and old:
                kept = dict(old)
                value = kept.pop(r.choice(list(kept))) if chance < 0.7 else new
                return kept if chance < 0.3 else {**kept, name: value}
            if isinstance(old, list) and old:
                at = r.randrange(len(old))
                return old[:at] + old[at + 1 :] if chance < 0.4 else old[:at] + [old[at]] * r.choice((2, 3, 40)) + [new]
            return name

        return change

    def _moved(self, whole: Any) -> Callable[[Any], Any]:
        """A value from elsewhere in the same request, or the same in another type."""
        other = _at(whole, self._random.choice(_places(whole)))
        return self._random.choice((str, repr, lambda x: [x], lambda x: {"a": x}, lambda x: bytes(3), lambda x: other))

    def _any(self, depth: int) -> Any:
        r = self._random
        kind = r.randrange(12)
        if kind < 3:
            return r.choice(WORDS)
        if kind < 6:
            return r.choice(NUMBERS)
        if kind == 6:
            return r.choice(FLOATS)
        if kind == 7:
            return r.choice((None, True, False))
        if kind == 8:
            return r.randbytes(r.choice((0, 1, 4, 7, 8, 64)))
        if kind == 9 and r.random() < 0.1:
            return Nest(r.choice(DEPTHS), r.random() < 0.5)
        if kind == 10 and depth:
            return [self._any(depth - 1) for _ in range(r.choice((0, 1, 3)))]
        if depth:
            return {r.choice(WORDS): self._any(depth - 1) for _ in range(r.choice((0, 1, 3)))}
        return msgspec.msgpack.Ext(r.choice((-1, -1, 0, 5, 127)), r.randbytes(r.choice((0, 1, 4, 8, 12, 16))))

    def _bytes(self, body: bytearray) -> bytes:
        r = self._random
        for _ in range(r.choice((1, 1, 2, 4))):
            at, kind = r.randrange(len(body) + 1), r.randrange(6)
            if kind == 0 and at < len(body):
                body[at] ^= 1 << r.randrange(8)
            elif kind == 1 and at < len(body):
                body[at] = r.choice((0x80, 0x90, 0xA0, 0xC1, 0xC4, 0xC6, 0xC9, 0xD6, 0xDB, 0xDD, 0xDF, 0x22, 0x5B))
            elif kind == 2:
                del body[at : at + r.choice((1, 2, 8, 10_000))]
            elif kind == 3:
                body[at:at] = r.randbytes(r.choice((1, 2, 5)))
            elif kind == 4:
                body[at:at] = body[at : at + r.randrange(30)]
            else:
                other = r.choice(self._bodies)
                body[at:] = other[r.randrange(len(other)) :]
        return bytes(body)


class Nest:
    """So many lists (or maps) within each other."""

    def __init__(self, depth: int, maps: bool) -> None:
        self.depth, self.maps = depth, maps

    def __repr__(self) -> str:
        return f"Nest({self.depth})"


def pack(value: Any, lies: random.Random | None = None) -> bytes:
    """msgpack, written here so that it may lie: in the length or the kind of a container, a string or binary data."""

    def write(each: Any) -> bytes:
        if isinstance(each, Nest):
            return (b"\x81\xa1a" if each.maps else b"\x91") * each.depth + b"\xc0"
        if isinstance(each, dict):
            members = b"".join(write(key) + write(member) for key, member in each.items())
            return head(len(each), 0x80, 0xDF) + members
        if isinstance(each, list):
            return head(len(each), 0x90, 0xDD) + b"".join(map(write, each))
        if isinstance(each, str) and len(each) < 8:
            text = each.encode()
            return head(len(text), 0xA0, 0xDB) + text
        if isinstance(each, bytes):
            return b"\xc6" + struct.pack(">I", lie(len(each))) + each
        return msgspec.msgpack.encode(each)

    def lie(length: int) -> int:
        if lies is not None and lies.random() < 0.1:
            return lies.choice((0, 1, length + 1, max(length - 1, 0), 15, 65_535, 2**31, 2**32 - 1))
        return length

    def head(length: int, short: int, long: int) -> bytes:
        told = lie(length)
        if lies is not None and lies.random() < 0.03:
            short, long = lies.choice(((0x80, 0xDF), (0x90, 0xDD), (0xA0, 0xDB)))
        return bytes([short + told]) if told < 16 else bytes([long]) + struct.pack(">I", told)

    return write(value)


def _sayable(value: Any) -> Any:
    if isinstance(value, Nest):
        nested = b'{"a":' * value.depth + b"0" + b"}" * value.depth
        return msgspec.Raw(nested if value.maps else b"[" * value.depth + b"]" * value.depth)
    if isinstance(value, dict):
        return {str(key): _sayable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_sayable(each) for each in value]
    return None if isinstance(value, msgspec.msgpack.Ext) else value


def _places(value: Any, path: Path = ()) -> list[Path]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in _places(each, (*path, key)))]


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value[step]
    return value


def _changed(value: Any, path: Path, change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    head, *rest = path
    copy = value.copy()
    copy[head] = _changed(value[head], tuple(rest), change)
    return copy
