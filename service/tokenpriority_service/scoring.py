"""From a checked request to scores: store, work in progress, admission, engine, priority, spans.

Knows the order of these steps. Knows nothing of HTTP or of bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from tokenpriority import spans
from tokenpriority.arrays import Namespace
from tokenpriority.errors import ApiError
from tokenpriority.evidence import SIGNALS, Evidence
from tokenpriority.methods import Inputs, prioritise
from tokenpriority_service.admission import Admission
from tokenpriority_service.dispatch import Dispatcher, Work
from tokenpriority_service.door import Draft, Request
from tokenpriority_service.engines.engine import Job, Rows
from tokenpriority_service.item import Refused, Sequence
from tokenpriority_service.models import Model
from tokenpriority_service.store import EvidenceStore, Wanted, content_key

NUMPY = cast(Namespace, np)


@dataclass(frozen=True, slots=True)
class Known:
    """The evidence of one sequence under one model: a [6, T] float32 array, or the error it met."""

    rows: Rows | ApiError
    cached: bool = False
    """Whether it came from the store."""


@dataclass(slots=True)
class Cost:
    """What a request took; milliseconds."""

    cached_tokens: int = 0
    """Tokens of sequences whose evidence, under every model, came from the store."""
    queue_ms: float = 0.0
    """From arrival until an engine began with the first of its work."""
    engine_ms: float = 0.0
    """From then until the last of its work was done."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one sequence; arrays of shape (T,), float32."""

    sequence: Sequence
    evidence: Evidence
    """Of the request's model; NaN before the first scored token."""
    priorities: np.ndarray[Any, np.dtype[np.float32]]
    cached: bool


@dataclass(slots=True)
class _Plan:
    """What one sequence needs of one model: a hit, work to wait for, or nothing."""

    model: Model
    sequence: Sequence
    wanted: Wanted
    hit: Rows | None = None
    work: Work | None = None

    @property
    def place(self) -> tuple[str, bytes]:
        """The work this needs: by model too, since two names may stand for equal weights."""
        return self.model.name, self.wanted.key


@dataclass(frozen=True, slots=True)
class Gathered:
    """The evidence of a request: for each of its sequences, one `Known` per model; None where it was refused."""

    known: list[list[Known] | None]
    cost: Cost = field(default_factory=Cost)


async def gather(request: Request, store: EvidenceStore, admission: Admission) -> Gathered:
    """The evidence of every sequence, from the store, from work in progress or from the engines.

    Raises Overloaded, before any work was begun, if the rest does not fit the queue; EngineFault (or Unavailable) if
    every sequence met one. Cancelling it gives up what nobody else waits for.
    """
    arrived = time.monotonic()
    models = _models(request.draft)
    plans = [[_plan(model, each) for model in models] for each in request.sequences if isinstance(each, Sequence)]
    flat = [plan for row in plans for plan in row if plan.sequence.score_from < len(plan.sequence.token_ids)]
    for plan, hit in zip(flat, await store.find([plan.wanted for plan in flat]), strict=True):
        plan.hit = hit
    # No await from here to the joins: what is admitted is exactly what is enqueued.
    missing = [plan for plan in flat if plan.hit is None]
    _enqueue(missing, admission)
    works = [plan.model.dispatcher.join(plan.work) for plan in missing if plan.work is not None]
    try:
        if works:
            await asyncio.wait({work.done for work in works})
    finally:
        for plan in missing:
            if plan.work is not None:
                plan.model.dispatcher.leave(plan.work)
    cost = _cost(plans, works, arrived)
    rows = iter(plans)
    known = [[_known(plan) for plan in next(rows)] if isinstance(s, Sequence) else None for s in request.sequences]
    _raise_if_all_failed(known)
    return Gathered(known, cost)


def score(request: Request, gathered: Gathered) -> list[Scored | Refused]:
    """Priorities from evidence, in the order of the request; pure computation, safe in any thread."""
    out: list[Scored | Refused] = []
    for sequence, known in zip(request.sequences, gathered.known, strict=True):
        if isinstance(sequence, Refused) or known is None:
            out.append(cast(Refused, sequence))
            continue
        try:
            out.append(_score(request.draft, sequence, known))
        except ApiError as error:
            out.append(Refused(sequence.id, error))
    return out


def _plan(model: Model, sequence: Sequence) -> _Plan:
    key = content_key(model.engine.info.fingerprint, sequence.token_ids)
    return _Plan(model, sequence, Wanted(key, sequence.score_from))


def _models(draft: Draft) -> list[Model]:
    return [draft.model] if draft.base is None else [draft.model, draft.base]


def _enqueue(missing: Many[_Plan], admission: Admission) -> None:
    """Give each plan its work: some in progress, or new work for which the tokens are admitted together."""
    jobs: dict[tuple[str, bytes], tuple[Dispatcher, Job]] = {}
    for plan in missing:
        plan.work = plan.model.dispatcher.find(plan.wanted)
        if plan.work is None:
            start = plan.wanted.score_from
            if plan.place in jobs:  # the same sequence twice in one request: computed once, as widely as either wants
                start = min(start, jobs[plan.place][1].score_from)
            jobs[plan.place] = plan.model.dispatcher, Job(plan.sequence.token_ids, start)
    admission.admit(sum(len(job.token_ids) for _, job in jobs.values()))
    works = {place: dispatcher.enqueue(place[1], job) for place, (dispatcher, job) in jobs.items()}
    for plan in missing:
        if plan.work is None:
            plan.work = works[plan.place]


def _known(plan: _Plan) -> Known:
    start = plan.sequence.score_from
    if plan.hit is not None:
        return Known(plan.hit, cached=True)
    if plan.work is None:
        return Known(np.full((len(SIGNALS), len(plan.sequence.token_ids)), np.nan, np.float32))
    result = plan.work.done.result()
    if isinstance(result, ApiError):
        return Known(result)
    # Work shared with a wider request knows more; what was not asked for is NaN, as from the store.
    rows = result.copy()
    rows[:, :start] = np.nan
    return Known(rows)


def _cost(plans: list[list[_Plan]], works: list[Work], arrived: float) -> Cost:
    cached = sum(len(row[0].sequence.token_ids) for row in plans if all(plan.hit is not None for plan in row))
    if not works:
        return Cost(cached)
    began = max(arrived, min(work.started or arrived for work in works))
    return Cost(cached, 1000 * (began - arrived), 1000 * (time.monotonic() - began))


def _raise_if_all_failed(known: list[list[Known] | None]) -> None:
    """Where the server failed on every single sequence, the request failed."""
    errors = [[k.rows for k in row or () if isinstance(k.rows, ApiError) and k.rows.status >= 500] for row in known]
    if all(errors):
        first = errors[0][0]
        raise type(first)(
            f"all {len(errors)} sequences failed; the first: {first.message}", retry_after=first.retry_after
        )


def _score(draft: Draft, sequence: Sequence, known: list[Known]) -> Scored:
    evidence = []
    for model, each in zip(_models(draft), known, strict=True):
        if isinstance(each.rows, ApiError):
            raise each.rows
        absent = [name for name in SIGNALS if name not in model.engine.info.signals]
        rows = dict(zip(SIGNALS, each.rows, strict=True)) | dict.fromkeys(absent)
        evidence.append(Evidence(**rows))
    inputs = Inputs(sequence.mask, reference=evidence[0], base=evidence[1] if len(evidence) > 1 else None)
    priorities = prioritise(draft.method, draft.params, inputs, xp=NUMPY)
    if sequence.labels is not None:
        priorities = spans.apply(priorities, sequence.labels, sequence.mask, xp=NUMPY)
    return Scored(sequence, evidence[0], priorities.astype(np.float32), all(each.cached for each in known))
