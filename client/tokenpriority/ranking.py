"""The exact k-th largest of any number of float32 values, in constant memory.

Knows order and counting, and keeps the values in an unnamed temporary file (in TMPDIR), 4 bytes each. Knows nothing of
what they measure.

The bits of a float32, taken as an unsigned integer with the sign bit flipped, and all bits flipped where it is set,
stand in the order of the floats. So one pass over the file counts the values by their upper 16 bits, which finds the
65,536th part of the order that holds the k-th largest, and a second pass counts the values of that part by their lower
16 bits, which finds it exactly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

Keys = np.ndarray[Any, np.dtype[np.uint32]]
Counts = np.ndarray[Any, np.dtype[np.int64]]

_SIGN = np.uint32(2**31)
_HALF = 16
_BINS = 2**_HALF
_CHUNK_BYTES = 2**17


class Ranking:
    """Values to be ranked; a context manager, which closes the file."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, values: np.ndarray[Any, np.dtype[np.float32]]) -> None:
        """Count in values of shape (n,). Raises ValueError if one is NaN, which has no place in an order."""
        if np.isnan(values).any():
            raise ValueError("values: NaN cannot be ranked")
        self._file.write(values.astype("<f4").tobytes())
        self._count += len(values)

    def largest(self, k: int) -> tuple[float, int]:
        """The k-th largest value, k from 1 to the number of values, and how many values are at or above it.

        -0.0 and 0.0 are one value. Raises ValueError if k is out of range.
        """
        if not 1 <= k <= self._count:
            raise ValueError(f"k: must be from 1 to the number of values {self._count}, got {k}")
        upper = np.zeros(_BINS, np.int64)
        for keys in self._keys():
            upper += np.bincount(keys >> _HALF, minlength=_BINS)
        part, above = _from_the_top(upper, k)
        lower = np.zeros(_BINS, np.int64)
        for keys in self._keys():
            lower += np.bincount(keys[keys >> _HALF == part] & (_BINS - 1), minlength=_BINS)
        place, higher = _from_the_top(lower, k - above)
        return _value(part << _HALF | place), above + higher + int(lower[place])

    def close(self) -> None:
        """Remove the file; idempotent."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keys(self) -> Iterator[Keys]:
        """Integers in the order of the values, in chunks."""
        self._file.seek(0)
        while chunk := self._file.read(_CHUNK_BYTES):
            # Adding 0.0 makes -0.0 of it 0.0, and nothing else of anything else.
            bits = (np.frombuffer(chunk, "<f4") + np.float32(0)).view(np.uint32)
            yield np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_the_top(counts: Counts, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many values are in the bins above it."""
    downwards = np.cumsum(counts[::-1])
    steps = int(np.searchsorted(downwards, k))
    return len(counts) - 1 - steps, int(downwards[steps] - counts[len(counts) - 1 - steps])


def _value(key: int) -> float:
    """The float32 whose key this is."""
    key_ = np.uint32(key)
    bits = key_ ^ _SIGN if key_ & _SIGN else ~key_
    return float(np.array([bits], np.uint32).view(np.float32)[0])
