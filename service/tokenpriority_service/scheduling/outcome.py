"""What came of a call of an engine: sound evidence, or a clear error.

Knows what the protocol promises of an answer, and trusts no engine with it. Knows nothing of queues or of who waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np

from tokenpriority.errors import ApiError, EngineFault, Unavailable
from tokenpriority_service.engines.engine import RETRY_SECONDS, Job, Rows

logger = logging.getLogger(__name__)


def outcomes(
    task: asyncio.Task[list[Rows | Exception]], jobs: Sequence[Job], signals: Sequence[Sequence[str]]
) -> list[Rows | ApiError]:
    """What a call came to: of each job, of whose model these signals are to be had, evidence as the protocol promises
    it, or the error it met.
    """
    if task.cancelled():
        gone = Unavailable("the engine gave no answer; the work was given up", retry_after=RETRY_SECONDS)
        return [gone] * len(jobs)
    error = task.exception()
    if isinstance(error, ApiError):
        return [_waitable(error)] * len(jobs)
    if error is not None:
        logger.error("the engine failed on %d jobs", len(jobs), exc_info=error)
        return [EngineFault(f"the engine failed: {type(error).__name__}")] * len(jobs)
    return [_checked(*each) for each in zip(counted(task.result(), len(jobs)), jobs, signals, strict=True)]


def counted(answers: list[Rows | Exception], jobs: int) -> list[Rows | Exception]:
    """The answers to so many jobs; where they are not as many, which is whose is not known, and each is that fault."""
    if len(answers) == jobs:
        return answers
    return [EngineFault(f"the engine answered {len(answers)} of {jobs} jobs")] * jobs


def _waitable(error: ApiError) -> ApiError:
    """An engine that cannot score now comes back by itself: whoever asked is told to wait."""
    if isinstance(error, Unavailable) and error.retry_after is None:
        error.retry_after = RETRY_SECONDS
    return error


def _checked(answer: Rows | Exception, job: Job, signals: Sequence[str]) -> Rows | ApiError:
    if isinstance(answer, ApiError):
        return _waitable(answer)
    if isinstance(answer, Exception):
        logger.error("the engine failed on a job of %d tokens", len(job.token_ids), exc_info=answer)
        return EngineFault(f"the engine failed: {type(answer).__name__}")
    shape = (len(job.rows), len(job.token_ids))
    if not isinstance(answer, np.ndarray) or answer.shape != shape or answer.dtype != np.float32:
        got = f"{answer.dtype}{list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
        return EngineFault(f"the engine's evidence must be float32{list(shape)}, got {got}")
    for row, name in enumerate(job.rows):
        bad = ~np.isfinite(answer[row, job.score_from :]) if name in signals else None
        if bad is not None and bad.any():
            index = job.score_from + int(bad.argmax())
            return EngineFault(f"the engine's {name} is {answer[row, index]} at token {index}")
    return answer
