"""Evidence by an engine: loaded, asked once for everything, timed, closed.

Knows the engine protocol. Knows nothing of what the numbers should be.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenpriority_service.engines import Engine, Job, Load
from tokenpriority_service.engines.engine import Ids, Rows


@dataclass(frozen=True, slots=True)
class Hosted:
    """What an engine says of the sequences: [6, N] or [7, N] float32 over all scored positions in order."""

    values: Rows
    signals: tuple[str, ...]
    fingerprint: str
    seconds: float
    load_seconds: float


def run_hosted(load: Load, kind: str, settings: Mapping[str, Any], sequences: list[Ids], warm_up: list[Ids]) -> Hosted:
    """Score sequences with the engine `kind`, after a warm-up on others that is not timed.

    Raises whatever the engine met, in loading or on the first sequence that failed.
    """
    began = time.perf_counter()
    engine = load(kind, **settings)
    return asyncio.run(_score(engine, time.perf_counter() - began, sequences, warm_up))


async def _score(engine: Engine, load_seconds: float, sequences: list[Ids], warm_up: list[Ids]) -> Hosted:
    try:
        info = engine.info
        top20 = "entropy_top20" in info.signals
        await engine.score([Job(ids, top20=top20) for ids in warm_up])
        began = time.perf_counter()
        results = await engine.score([Job(ids, top20=top20) for ids in sequences])
        seconds = time.perf_counter() - began
    finally:
        await engine.close()
    rows = []
    for number, (ids, result) in enumerate(zip(sequences, results, strict=True)):
        if isinstance(result, Exception):
            raise ValueError(f"sequence {number} of {len(ids)} tokens: {type(result).__name__}: {result}") from result
        rows.append(result[:, 1:])
    return Hosted(np.concatenate(rows, 1), info.signals, info.fingerprint, seconds, load_seconds)
