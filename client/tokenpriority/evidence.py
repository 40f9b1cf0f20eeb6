"""Evidence: what a frozen or a live model says about the tokens of one sequence.

Knows the signals, their order and their alignment. Knows nothing of how they are computed or used.

Alignment, the one rule: every array has the length of `token_ids`, and row i speaks of the prediction of token i
from tokens 0..i-1. Index 0 has no prediction; it and every position before `score_from` hold NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenpriority.arrays import Array
from tokenpriority.errors import InvalidParameter

SIGNALS = ("logprob", "entropy", "top1_logprob", "rank", "mass_above", "mass_tied")
"""The signals an engine returns, in the order of the rows of its [6, T] float32 array."""

OPTIONAL_SIGNALS = ("entropy_top20",)
"""Signals that are computed only where a request names them; their rows follow those of `SIGNALS`: [7, T]."""

ENGINE_SIGNALS = (*SIGNALS, *OPTIONAL_SIGNALS)
"""Every signal an engine may give."""

ALL_SIGNALS = (*ENGINE_SIGNALS, "collision")
"""Every signal a formula may read; the last one only the trainer can compute."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """The signals of one sequence; arrays of one shape (T,), float32 from an engine, natural logarithm.

    With q the model's distribution at the position, from the full vocabulary, and y the token:
    """

    logprob: Array
    """log q(y)."""
    entropy: Array | None = None
    """-sum_v q(v) log q(v), nats."""
    top1_logprob: Array | None = None
    """max_v log q(v)."""
    rank: Array | None = None
    """1 + #{v: q(v) > q(y)}; exact in float32 up to 2**24."""
    mass_above: Array | None = None
    """sum of q(v) over q(v) > q(y)."""
    mass_tied: Array | None = None
    """sum of q(v) over v != y with q(v) = q(y)."""
    entropy_top20: Array | None = None
    """Entropy of the 20 likeliest tokens renormalised among themselves, nats (EAFT, arXiv 2601.02151); optional."""
    collision: Array | None = None
    """sum_v q(v)^2, the probability that two draws agree (DEFT, arXiv 2602.11424); never from an engine."""

    @classmethod
    def from_rows(cls, rows: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> Evidence:
        """Evidence from an engine's [6, T] or [7, T] array, rows in the order of `ENGINE_SIGNALS`; views, no copy."""
        return cls(*rows)

    def present(self) -> dict[str, Array]:
        """The signals that are there, by name."""
        values = {name: getattr(self, name) for name in ALL_SIGNALS}
        return {name: value for name, value in values.items() if value is not None}

    def signal(self, name: str) -> Array:
        """One signal, shape (T,). Raises InvalidParameter if it is absent: an absent signal is never invented."""
        value = getattr(self, name) if name in ALL_SIGNALS else None
        if value is None:
            raise InvalidParameter(f"signal {name!r} is not available from this model (engine or live student)")
        return value
