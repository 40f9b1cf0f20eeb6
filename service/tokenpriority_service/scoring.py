"""From a checked request to scores: store, work in progress, admission, engine, priority, spans.

Knows the order of these steps. Knows nothing of HTTP or of bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from tokenpriority import spans
from tokenpriority.arrays import Namespace
from tokenpriority.errors import ApiError
from tokenpriority.evidence import ENGINE_SIGNALS, SIGNALS, Evidence
from tokenpriority.methods import Inputs, prioritise
from tokenpriority_service.admission import Admission
from tokenpriority_service.dispatch import Work
from tokenpriority_service.door import Draft, Request
from tokenpriority_service.engines.engine import Rows
from tokenpriority_service.item import Refused, Sequence
from tokenpriority_service.models import Model
from tokenpriority_service.store import EvidenceStore, Wanted, content_keys

NUMPY = cast(Namespace, np)


@dataclass(frozen=True, slots=True)
class Known:
    """The evidence of one sequence under one model, float32 [6 or 7, T], or the error it met."""

    rows: Rows | ApiError
    cached: bool = False
    """Whether all of it came from the store."""


@dataclass(slots=True)
class Cost:
    """What a request took; milliseconds."""

    cached_tokens: int = 0
    """Tokens whose evidence, under every model, came from the store: of whole sequences, or of their beginnings."""
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
    """What one sequence needs of one model: a known beginning, and work to wait for if that is not all."""

    model: Model
    sequence: Sequence
    wanted: Wanted
    known: Rows
    """[6 or 7, n]: what the store knows, see EvidenceStore.find."""
    work: Work | None = None

    @property
    def known_tokens(self) -> int:
        return len(self.known[0])

    @property
    def rest(self) -> Wanted:
        """What the store does not know."""
        return replace(self.wanted, score_from=max(self.wanted.score_from, self.known_tokens))

    @property
    def missing(self) -> bool:
        return self.rest.score_from < self.wanted.length

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
    plans = await _plans(request, store)
    # No await from here to the joins: what is admitted is exactly what is enqueued.
    missing = [plan for row in plans for plan in row if plan.missing]
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


async def _plans(request: Request, store: EvidenceStore) -> list[list[_Plan]]:
    """For each sequence that can be scored, a plan per model, with what the store knows."""
    models = request.draft.models
    wishes = [
        [(model, each, _wanted(model, each, top20)) for model, top20 in models]
        for each in request.sequences
        if isinstance(each, Sequence)
    ]
    found = iter(await store.find([wanted for row in wishes for _, _, wanted in row]))
    return [[_Plan(model, each, wanted, next(found)) for model, each, wanted in row] for row in wishes]


def _wanted(model: Model, sequence: Sequence, top20: bool) -> Wanted:
    keys = content_keys(model.engine.info.fingerprint, sequence.token_ids)
    return Wanted(keys, len(sequence.token_ids), sequence.score_from, top20)


def _enqueue(missing: Many[_Plan], admission: Admission) -> None:
    """Give each plan its work: some in progress, or new work for which the tokens are admitted together."""
    new: dict[tuple[str, bytes], tuple[_Plan, Wanted]] = {}
    for plan in missing:
        plan.work = plan.model.dispatcher.find(plan.rest)
        if plan.work is None:
            # The same sequence twice in one request is computed once, as widely as both want.
            new[plan.place] = plan, plan.rest.union(new[plan.place][1]) if plan.place in new else plan.rest
    admission.admit(sum(wanted.length for _, wanted in new.values()))
    works = {
        place: plan.model.dispatcher.enqueue(wanted, plan.sequence.token_ids) for place, (plan, wanted) in new.items()
    }
    for plan in missing:
        if plan.work is None:
            plan.work = works[plan.place]


def _known(plan: _Plan) -> Known:
    """The store's part and the engine's, put together. Work shared with others may know more than was asked for."""
    if plan.known_tokens == plan.wanted.length:
        return Known(plan.known, cached=True)
    result = plan.work.done.result() if plan.work is not None else None
    if isinstance(result, ApiError):
        return Known(result)
    rows = np.full((plan.wanted.rows, plan.wanted.length), np.nan, np.float32)
    rows[:, : plan.known_tokens] = plan.known
    if result is None:  # nothing was wanted of it
        return Known(rows)
    start = plan.rest.score_from
    rows[:, start:] = result[: plan.wanted.rows, start:]
    return Known(rows)


def _cost(plans: list[list[_Plan]], works: list[Work], arrived: float) -> Cost:
    cached = sum(min(plan.known_tokens for plan in row) for row in plans)
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
    for (model, _), each in zip(draft.models, known, strict=True):
        if isinstance(each.rows, ApiError):
            raise each.rows
        absent = [name for name in SIGNALS if name not in model.engine.info.signals]
        rows = dict(zip(ENGINE_SIGNALS, each.rows, strict=False)) | dict.fromkeys(absent)
        evidence.append(Evidence(**rows))
    reference, base = evidence if len(evidence) == 2 else (evidence[0], None)
    labels = sequence.labels
    inputs = Inputs(
        sequence.mask,
        reference=reference,
        base=base,
        labels=labels,
        prompt=sequence.prompt,
        token_ids=sequence.token_ids.astype(np.int64),
    )
    priorities = prioritise(draft.method, draft.params, inputs, xp=NUMPY)
    if labels is not None and draft.method.labels == "over":
        priorities = spans.apply(priorities, labels, sequence.mask, xp=NUMPY)
    return Scored(sequence, evidence[0], priorities.astype(np.float32), all(each.cached for each in known))
