"""What an engine is: token ids in, evidence out.

An engine knows one model and nothing of methods, teams, HTTP or text; it is purely token ids. What is behind it is
imported when that engine is loaded, never by this file.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from tokenpriority.evidence import ENGINE_SIGNALS, SIGNALS

RETRY_SECONDS = 2.0
"""`retry_after` of an engine that is out of order: it comes back by itself."""

Ids = np.ndarray[Any, np.dtype[np.uint32]]
Rows = np.ndarray[Any, np.dtype[np.float32]]


DTYPES = ("float32", "bfloat16", "float16")
"""What an engine that loads a model may load it in."""


@dataclass(frozen=True, slots=True)
class Job:
    """One sequence to score.

    `token_ids` (T,) uint32, T >= 1, every id below the vocabulary's size, T at most max_model_len. `score_from` >= 1
    is the first index whose evidence is wanted; score_from >= T means none is.
    """

    token_ids: Ids
    score_from: int = 1
    top20: bool = False
    """Whether `entropy_top20` is wanted too; only of an engine whose `EngineInfo.signals` lists it."""
    salt: str = ""
    """Only jobs of one salt may share what an engine keeps of their beginnings: how long an answer takes tells whether
    someone scored the same before."""
    urgent: bool = False
    """An engine that has not begun with all its jobs may begin with these."""

    @property
    def rows(self) -> tuple[str, ...]:
        """The signal of each row of the evidence: six, or seven where `top20`."""
        return ENGINE_SIGNALS if self.top20 else SIGNALS


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
    """Those of `evidence.SIGNALS` and `OPTIONAL_SIGNALS` this engine fills. Rows of other `SIGNALS` it leaves NaN and
    they are reported absent; optional signals not listed here are never asked for."""
    batches: bool = False
    """Whether it batches over calls, and so wants the next ones before it is done; else it does one after the other."""
    urgent_first: bool = False
    """Whether urgent jobs go before all others it has not begun with, whenever it was given those."""
    length_bounds: tuple[int, ...] = ()
    """Lengths, ascending, each of which parts sequences up to it from longer ones: beyond it all of a sequence's
    evidence, that of its first tokens too, is had in another way (longrope)."""

    def content_fingerprint(self, length: int) -> str:
        """What evidence of sequences of so many tokens is known by: the evidence of equal beginnings under equal
        fingerprints is equal.
        """
        passed = bisect_left(self.length_bounds, length)
        return f"{self.fingerprint}>{self.length_bounds[passed - 1]}" if passed else self.fingerprint


class Engine(Protocol):
    """A loaded model that scores."""

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""

    @property
    def tokenizer(self) -> Any | None:
        """The model's transformers tokenizer, or None if it takes ids only."""

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """Further models on the same weights (LoRA adapters), by name; constant, and closed with this engine."""

    @property
    def fault(self) -> str | None:
        """Why it cannot score now (its process died and is being restarted, no replica answers), or None; cheap."""

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order: a float32 array [6, T], or [7, T] for a job with `top20`, rows in the order of
        `Job.rows`, NaN before `score_from` and at index 0; or the exception that job met. Never a short array, never
        NaN where evidence was wanted. While there is a `fault`, each job meets Unavailable at once. A cancelled call
        drops what has not begun. Calls may run at the same time.
        """

    async def close(self) -> None:
        """Finish nothing more and free the model; idempotent."""
