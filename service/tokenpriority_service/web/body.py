"""A raw body: read within a size and a time, and measured before anything is built from it.

Knows bytes, and how the two formats nest. Knows nothing of fields. It exists since a decoder builds an object of some
70 bytes for an empty container of 1 byte, and nothing else runs meanwhile: 32 MiB of them take 2.4 GB and many seconds.
"""

from __future__ import annotations

import asyncio
import re

import numpy as np
from fastapi import Request

from tokenpriority import wire
from tokenpriority.errors import MalformedBody, TooLarge

MAX_DEPTH = 64
"""Containers within containers. A tool call's arguments begin at 9."""
BODY_SECONDS = 120.0
"""Within which a body must have arrived whole: a client that sends it byte by byte holds its memory no longer."""
_SPARE_VALUES = 65_536

_STRING = re.compile(rb'"[^"]*"?')
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = np.zeros(256, np.int8)
_STEPS[list(b"[{")], _STEPS[list(b"]}")] = 1, -1

_SCALARS = {
    **dict.fromkeys([*range(0x80), *range(0xE0, 0x100), 0xC0, 0xC2, 0xC3], 0),
    **{0xA0 + length: length for length in range(32)},
    **{0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8},
    **{0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
}
"""First byte of a msgpack value -> how many more it has."""
_SIZED = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)}
_SIZED |= {0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0)}
"""First byte -> how many bytes its length has, and how many bytes there are besides."""
_CONTAINERS = {**dict.fromkeys(range(0x80, 0x90), (0, 2)), **dict.fromkeys(range(0x90, 0xA0), (0, 1))}
_CONTAINERS |= {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""First byte -> how many bytes its length has (0: it is in the first), and how many values each member is."""


async def read(request: Request, limit: int) -> bytes:
    """The whole body. Raises TooLarge as soon as it is known to be over `limit` bytes: by its declared length, else
    while it comes; MalformedBody if it takes longer than BODY_SECONDS.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"body: must be at most {limit} bytes (max_body_bytes), got {declared}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise TooLarge(f"body: must be at most {limit} bytes (max_body_bytes), got more than {limit}")
    except TimeoutError:
        raise MalformedBody(f"body: must arrive whole within {BODY_SECONDS:g} s, got {len(body)} bytes") from None
    return bytes(body)


def max_values(max_request_tokens: int) -> int:
    """How many values (keys, numbers, strings, containers) a body may hold: more than any request within this limit
    needs, an id and a mask bit per token as lists being the most.
    """
    return 4 * max_request_tokens + _SPARE_VALUES


def measure(body: bytes, media_type: str, limit: int) -> None:
    """Raises TooLarge if a body holds more than `limit` values, MalformedBody if it nests deeper than MAX_DEPTH.

    A body that is not of the format at all may pass: its decoder says what is wrong.
    """
    (_measure_json if media_type == wire.JSON else _measure_msgpack)(body, media_type, limit)


def _measure_json(body: bytes, media_type: str, limit: int) -> None:
    bare = body
    if b"\\" in body:
        # From left to right, as escapes are read: what is left of quotes delimits strings.
        bare = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if bare.count(b'"') > 2 * limit:
        raise _too_many(limit)
    bare = _STRING.sub(b"", bare)
    if sum(map(bare.count, (b",", b":", b"[", b"{"))) >= limit:
        raise _too_many(limit)
    brackets = np.frombuffer(bare.translate(None, _NOT_BRACKETS), np.uint8)
    if len(brackets) and int(np.cumsum(_STEPS[brackets], dtype=np.int32).max()) > MAX_DEPTH:
        raise _too_deep(media_type)


def _measure_msgpack(body: bytes, media_type: str, limit: int) -> None:
    at, end, seen = 0, len(body), 0
    left = 1  # values still to come in this container
    around: list[int] = []  # and in each of those around it
    while at < end:
        while not left:
            if not around:
                return
            left = around.pop()
        if seen == limit:
            raise _too_many(limit)
        seen += 1
        left -= 1
        first = body[at]
        at += 1
        if first in _SCALARS:
            at += _SCALARS[first]
        elif first in _SIZED:
            width, more = _SIZED[first]
            at += width + more + int.from_bytes(body[at : at + width], "big")
        elif first in _CONTAINERS:
            width, factor = _CONTAINERS[first]
            around.append(left)
            if len(around) > MAX_DEPTH:
                raise _too_deep(media_type)
            left = factor * (int.from_bytes(body[at : at + width], "big") if width else first & 0x0F)
            at += width
        else:
            return  # 0xc1, which means nothing


def _too_many(limit: int) -> TooLarge:
    return TooLarge(f"body: must hold at most {limit} values (4 for each of max_request_tokens, and {_SPARE_VALUES})")


def _too_deep(media_type: str) -> MalformedBody:
    return MalformedBody(f"body: {media_type} may nest at most {MAX_DEPTH} deep, got more")
