"""A caller's sequence as it stands on the wire, and sequences grouped into requests.

Knows how ids, masks and mappings are encoded, and how large one request should be. Judges nothing that can be
encoded: unknown keys, lengths and ranges are the server's to refuse, once, for every client.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np

from tokenpriority import wire
from tokenpriority.errors import InvalidSequence
from tokenpriority.scores import Ids, ScoreFailure

SequenceLike: TypeAlias = "str | Mapping[str, Any] | np.ndarray[Any, Any] | list[int] | Any"
"""A 1-D array or list of token ids; a text; or a mapping with the keys of `schema.SequenceItem`."""

MAX_SEQUENCES = 64
"""Sequences per request: enough that the cost of a request no longer shows (measured: 88 to 9 us per sequence)."""
MAX_TOKENS = 65_536
"""Tokens per request: 0.5 MB of answer, under a second of work for a server of 100,000 tokens/s."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sequence, encoded."""

    id: str | int
    fields: dict[str, Any]
    """The wire's fields without the id."""
    key: bytes
    """The fields as bytes: equal keys are equal sequences."""
    token_ids: Ids | None
    """(T,) uint32 as sent; None where the server tokenises."""

    @property
    def tokens(self) -> int:
        """Tokens sent, or for text an estimate: one per three bytes."""
        return len(self.key) // 3 + 1 if self.token_ids is None else len(self.token_ids)


Entry: TypeAlias = Item | ScoreFailure
"""A sequence of a call: encoded, or not encodable."""


def encode_sequence(sequence: SequenceLike, number: int) -> Item:
    """A caller's sequence as a wire item; `number` is its id if it has none.

    Raises InvalidSequence naming the field if it is of a type that cannot be encoded.
    """
    if isinstance(sequence, str):
        fields: dict[str, Any] = {"text": sequence}
    elif isinstance(sequence, Mapping):
        fields = dict(sequence)
    elif isinstance(sequence, list | tuple) or hasattr(sequence, "__array__"):
        fields = {"token_ids": sequence}
    else:
        raise InvalidSequence(
            "a sequence is a 1-D array or list of token ids, a str or a mapping with the wire's keys, "
            f"got {type(sequence).__name__}"
        )
    name = fields.pop("id", number)
    if isinstance(name, bool) or not isinstance(name, str | int | np.integer):
        raise InvalidSequence(f"id: must be a str or an int, got {name!r}")
    token_ids = _binary(fields, "token_ids", wire.U4)
    _binary(fields, "mask", wire.U1)
    plain, key = _builtins(fields)
    return Item(name if isinstance(name, str) else int(name), plain, key, token_ids)


def encoded(sequences: Iterable[SequenceLike]) -> Iterator[Entry]:
    """Each sequence encoded, lazily; one that cannot be is a failure in its place, and a failure stays one.

    Raises TypeError if `sequences` is one sequence rather than several.
    """
    if isinstance(sequences, str | bytes | Mapping) or (isinstance(sequences, np.ndarray) and sequences.ndim == 1):
        raise TypeError(f"sequences: several are expected, got one {type(sequences).__name__}; put it in a list")
    return _encoded(sequences)


def _encoded(sequences: Iterable[SequenceLike]) -> Iterator[Entry]:
    for number, sequence in enumerate(sequences):
        if isinstance(sequence, ScoreFailure):
            yield sequence
            continue
        try:
            yield encode_sequence(sequence, number)
        except InvalidSequence as error:
            name = sequence.get("id") if isinstance(sequence, Mapping) else None
            yield ScoreFailure(name if isinstance(name, str | int) else number, error)


def grouped(entries: Iterable[Entry], max_tokens: int = MAX_TOKENS) -> Iterator[list[Entry]]:
    """Entries in groups of at most MAX_SEQUENCES and `max_tokens`, lazily; a longer sequence goes alone.

    If the iterable raises, what came before it is yielded first.
    """
    group: list[Entry] = []
    tokens = 0
    try:
        for entry in entries:
            size = entry.tokens if isinstance(entry, Item) else 0
            if group and tokens + size > max_tokens:
                yield group
                group, tokens = [], 0
            group.append(entry)
            tokens += size
            if len(group) == MAX_SEQUENCES:
                yield group
                group, tokens = [], 0
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _binary(fields: dict[str, Any], name: str, dtype: np.dtype[Any]) -> Any:
    """Turn an array field into raw bytes in place; return the array, None where there is none."""
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bytes):
        return None if len(value) % dtype.itemsize else wire.unpack(value, dtype, name)
    array = _integers(value, name)
    limit = 256**dtype.itemsize
    if array.size and not (array.min() >= 0 and array.max() < limit):
        bad = int(array.min() if array.min() < 0 else array.max())
        raise InvalidSequence(f"{name}: values must be at least 0 and less than {limit}, got {bad}")
    array = array.astype(dtype)
    array.flags.writeable = False
    fields[name] = array.tobytes()
    return array


def _integers(value: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:  # ragged, or an array of a device
        raise InvalidSequence(f"{name}: must be a 1-D array or list of integers: {error}") from None
    if array.ndim != 1:
        raise InvalidSequence(f"{name}: must be 1-D, got shape {array.shape}")
    if array.dtype.kind not in ("bui" if name == "mask" else "ui") and array.size:
        raise InvalidSequence(f"{name}: must hold integers, got {array.dtype}")
    return array


def _builtins(fields: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The fields as plain values and as bytes. Raises InvalidSequence if msgpack has no form for one of them."""
    try:
        plain: dict[str, Any] = msgspec.to_builtins(fields, builtin_types=(bytes,), enc_hook=plain_number)
        return plain, wire.encode(plain)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidSequence(f"cannot be encoded: {error}") from None


def plain_number(value: Any) -> Any:
    """A numpy scalar as Python's own number; msgspec asks for what it does not know."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no form on the wire")
