"""What a caller gets back for one sequence: its scores, or why there are none.

Knows the arrays and their alignment. Knows nothing of the wire.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenpriority.errors import ApiError

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """One scored sequence of T tokens. Arrays are read-only and aligned to `token_ids`.

    Index 0 has no prediction: NaN in logprobs and signals, 0 in priorities. Positions that were not scored likewise.
    """

    id: str | int
    """The caller's id, else the sequence's number in the call, from 0."""
    token_ids: Ids
    """(T,) uint32: as sent, or as the server tokenised the text."""
    logprobs: Floats
    """(T,) float32, natural logarithm: log p(token i | tokens before i) under the model that was asked."""
    priorities: Floats
    """(T,) float32, signed, finite; exactly 0 where masked out."""
    signals: dict[str, Floats] = field(default_factory=dict)
    """The signals asked for, each (T,) float32; see `tokenpriority.evidence`."""
    cached: bool = False
    """Whether the server had scored these tokens before."""
    offsets: Ids | None = None
    """(T, 2) uint32, if asked for: the characters [start, end) of each token in `text`; None for token ids."""
    text: str | None = None
    """What the offsets count in: the text, prompt + completion, or the rendered chat."""


@dataclass(frozen=True, slots=True)
class ScoreFailure:
    """A sequence that could not be scored; the others of its call were."""

    id: str | int
    error: ApiError
