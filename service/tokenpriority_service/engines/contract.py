"""What every engine checks of a job on its way in and of evidence on its way out.

Knows jobs and rows. Knows nothing of models: an engine keeps the protocol by calling these.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import numpy as np

from tokenpriority.errors import EngineFault, InvalidSequence
from tokenpriority_service.engines.engine import EngineInfo, Ids, Job, Rows


def check_job(job: Job, info: EngineInfo) -> None:
    """Raise InvalidSequence, naming field, value and limit, if this model cannot take the job.

    The door has checked all this for people. An engine checks again because an id beyond the vocabulary would end a
    GPU process, not the job.
    """
    ids = job.token_ids
    if ids.ndim != 1 or ids.dtype != np.uint32:
        raise InvalidSequence(f"token_ids: expected a 1-D uint32 array, got {ids.ndim}-D {ids.dtype}")
    if not 1 <= len(ids) <= info.max_model_len:
        raise InvalidSequence(f"token_ids: expected 1 to {info.max_model_len} tokens, got {len(ids)}")
    if int(ids.max()) >= info.vocab_size:
        where = int(ids.argmax())
        raise InvalidSequence(f"token_ids[{where}]: expected an id below {info.vocab_size}, got {int(ids[where])}")
    if job.top20 and "entropy_top20" not in info.signals:
        raise InvalidSequence(f"signals: engine {info.engine!r} does not give entropy_top20")
    if job.score_from < 1:
        raise InvalidSequence(f"score_from: expected at least 1, got {job.score_from}")


def probe_ids(count: int, vocab_size: int) -> Ids:
    """(count,) uint32 ids spread over the whole vocabulary, always the same: what engines are checked with."""
    return ((np.arange(count, dtype=np.int64) * 7919 + 13) % vocab_size).astype(np.uint32)


def wanted(job: Job) -> int:
    """How many positions of a job are scored."""
    return max(0, len(job.token_ids) - job.score_from)


async def score_wanted(
    jobs: Sequence[Job], info: EngineInfo, score: Callable[[list[Job]], Awaitable[list[Rows | Exception]]]
) -> list[Rows | Exception]:
    """The result of each job in order: InvalidSequence where this model cannot take it, all NaN where nothing of it is
    wanted, and of the others what `score` gives for them.
    """
    results: list[Rows | Exception] = []
    queued = []
    for number, job in enumerate(jobs):
        try:
            check_job(job, info)
        except InvalidSequence as error:
            results.append(error)
            continue
        results.append(empty_rows(job))
        if wanted(job):
            queued.append(number)
    for number, result in zip(queued, await score([jobs[n] for n in queued]), strict=True):
        results[number] = result
    return results


def empty_rows(job: Job) -> Rows:
    """The float32 array of a job, [6, T] or [7, T], before anything is known: all NaN."""
    return np.full((len(job.rows), len(job.token_ids)), np.nan, np.float32)


def filled_rows(job: Job, evidence: Rows, signals: Sequence[str] | None = None) -> Rows:
    """The array of a job, [R, T] with R = len(job.rows), from the evidence of its scored positions, one row for each
    of `signals`, which are those of `job.rows` where not given; other rows stay NaN.

    Raises EngineFault naming position and signal if anything wanted is not finite.
    """
    names = tuple(job.rows if signals is None else signals)
    if evidence.shape != (len(names), wanted(job)):
        raise EngineFault(f"expected evidence of shape {[len(names), wanted(job)]}, got {list(evidence.shape)}")
    if not np.isfinite(evidence).all():
        column, row = np.argwhere(~np.isfinite(evidence.T))[0]
        value = evidence[row, column]
        raise EngineFault(f"the model gave {names[row]} = {value} at position {job.score_from + int(column)}")
    rows = empty_rows(job)
    rows[[job.rows.index(name) for name in names], job.score_from :] = evidence
    return rows
