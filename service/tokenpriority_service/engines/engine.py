"""What an engine is: token ids in, evidence out.

An engine knows one model and nothing of methods, teams, HTTP or text; it is purely token ids. What is behind it is
imported when that engine is loaded, never by this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Rows = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to score.

    `token_ids` (T,) uint32, T >= 1, every id below the vocabulary's size, T at most max_model_len. `score_from` >= 1
    is the first index whose evidence is wanted; score_from >= T means none is.
    """

    token_ids: Ids
    score_from: int = 1


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine says of its model once loaded."""

    engine: str
    model: str
    dtype: str
    max_model_len: int
    vocab_size: int
    fingerprint: str
    """Hex digest of weights, revision, dtype, numerics and tokenizer: of anything that moves a number."""
    signals: tuple[str, ...]
    """The rows of `evidence.SIGNALS` this engine fills; others it leaves NaN and they are reported absent."""


class Engine(Protocol):
    """A loaded model that scores."""

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""

    @property
    def tokenizer(self) -> Any | None:
        """The model's transformers tokenizer, or None if it takes ids only."""

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order: a [6, T] float32 array, rows in the order of `tokenpriority.evidence.SIGNALS`,
        NaN before `score_from` and at index 0; or the exception that job met. Never a short array, never NaN where
        evidence was wanted. A cancelled call drops what has not begun.
        """

    async def close(self) -> None:
        """Finish nothing more and free the model; idempotent."""
