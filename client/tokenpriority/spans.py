"""Signed labels from the caller, from character or token offsets to tokens.

Knows offsets and tokens. Knows nothing of tokenizers (it is given the offsets) or of methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidSequence


@dataclass(frozen=True, slots=True)
class Label:
    """A span in the units of the sequence it lies in: [start, end) gets `priority`."""

    start: int
    end: int
    priority: float


def token_labels(labels: Sequence[Label], length: int, *, first: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Labels by token offsets -> the label of each token, shape (length,) float32, NaN where there is none.

    `first` is the number that errors give the first label. Raises InvalidSequence if a span is empty or ends after
    the last token.
    """
    out = np.full(length, np.nan, np.float32)
    for number, label in enumerate(labels, first):
        _check(number, label, length, "tokens")
        out[label.start : label.end] = label.priority
    return out


def char_labels(
    labels: Sequence[Label], offsets: np.ndarray[Any, np.dtype[np.int64]], text_length: int, *, first: int = 0
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Labels by character offsets -> the label of each token, shape (T,) float32, NaN where there is none.

    `offsets` is [T, 2] int64, the characters [start, end) of each token; a token overlaps a span if they share a
    character (tokens of no characters, such as an end-of-sequence token, overlap none). `first` is the number that
    errors give the first label. Raises InvalidSequence if a span is empty, ends after the text, or overlaps no token.
    """
    out = np.full(len(offsets), np.nan, np.float32)
    for number, label in enumerate(labels, first):
        _check(number, label, text_length, "characters")
        start, end = offsets[:, 0], offsets[:, 1]
        inside = (start < label.end) & (end > label.start) & (end > start)
        if not inside.any():
            raise InvalidSequence(f"spans[{number}]: characters [{label.start}, {label.end}) overlap no token")
        out[inside] = label.priority
    return out


def apply(priorities: Array, labels: Array, mask: Array, *, xp: Namespace) -> Array:
    """Priorities with the caller's labels laid over them, shape (T,); masked-out tokens stay 0."""
    return xp.where(mask & ~xp.isnan(labels), labels, priorities)


def _check(number: int, label: Label, length: int, unit: str) -> None:
    if label.end <= label.start:
        raise InvalidSequence(f"spans[{number}]: end must be greater than start {label.start}, got {label.end}")
    if label.end > length:
        raise InvalidSequence(f"spans[{number}].end: the sequence has {length} {unit}, got {label.end}")
