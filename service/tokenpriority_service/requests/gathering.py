"""The evidence of a request: store, work in progress, quota, admission, engine.

Knows the order of these steps, and that a team is charged for exactly what is done for it. Knows nothing of HTTP, of
methods or of priorities.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

from tokenpriority.errors import ApiError
from tokenpriority_service.models import Model
from tokenpriority_service.requests.door import Draft, Request
from tokenpriority_service.requests.item import Sequence
from tokenpriority_service.requests.plan import Known, New, Plan, unbegun
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.dispatch import Work
from tokenpriority_service.scheduling.fair_queue import Flow
from tokenpriority_service.scheduling.refusals import REFUSALS
from tokenpriority_service.store import EvidenceStore, Wanted, content_keys
from tokenpriority_service.teams.caller import Caller
from tokenpriority_service.teams.charge import Charge, Remaining
from tokenpriority_service.teams.quota import Quota
from tokenpriority_service.telemetry.metrics import Reason
from tokenpriority_service.telemetry.tracing import Tracer


@dataclass(slots=True)
class Cost:
    """What a request took; milliseconds."""

    cached_tokens: int = 0
    """Tokens whose evidence, under every model, came from the store: of whole sequences, or of their beginnings."""
    by_model: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Under each model by itself, of the answered sequences: their tokens, and how many came from the store."""
    remaining: Remaining | None = None
    """What the charge left to the team, where it has limits and there was anything to charge."""
    queue_ms: float = 0.0
    """From arrival until an engine began with the first of its work."""
    engine_ms: float = 0.0
    """From then until the last of its work was done."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """The evidence of a request: for each of its sequences, one `Known` per model; None where it was refused."""

    known: list[list[Known] | None]
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True, slots=True)
class Resources:
    """What every request shares."""

    store: EvidenceStore
    admission: Admission
    quota: Quota
    tracer: Tracer
    refused: Callable[[Caller, str, Reason], None]
    """Told of a team's request that was refused, the model it was for, and why."""


async def gather(request: Request, caller: Caller, salt: str, shared: Resources) -> Gathered:
    """The evidence of every sequence, from the store, from work in progress or from the engines.

    `salt` keeps what is stored and computed apart from that of other salts. Raises Overloaded or Unavailable, before
    any work was begun, if the rest does not fit the team's limits or the queue; EngineFault (or Unavailable) if every
    sequence met one. Cancelling it gives up what nobody else waits for.
    """
    arrived = time.monotonic()
    with shared.tracer.span("store", tokens=request.tokens):
        plans = await _plans(request, salt, shared.store)
    missing = [plan for row in plans for plan in row if plan.missing]
    if request.draft.cached_only:
        cost = _cost(plans, [], arrived)
    else:
        works, remaining = await _compute(missing, request.draft, caller, salt, shared)
        cost = _cost(plans, works, arrived)
        cost.remaining = remaining
    answers = [[plan.answer() for plan in row] for row in plans]
    cost.by_model = _by_model(plans, answers)
    rows = iter(answers)
    known = [next(rows) if isinstance(each, Sequence) else None for each in request.sequences]
    _raise_if_all_failed(known)
    return Gathered(known, cost)


async def coverage(request: Request, salt: str, store: EvidenceStore) -> list[int | None]:
    """How many leading tokens of each sequence are stored under every model; None where it was refused."""
    wishes = _wishes(request, salt)
    found = iter(await store.covered([wanted for row in wishes for _, _, wanted in row]))
    # Of a sequence of which nothing is wanted everything is there.
    stored = [[(wanted, next(found)) for _, _, wanted in row] for row in wishes]
    covered = iter([min(w.length if w.score_from >= w.length else known for w, known in row) for row in stored])
    return [next(covered) if isinstance(each, Sequence) else None for each in request.sequences]


async def _plans(request: Request, salt: str, store: EvidenceStore) -> list[list[Plan]]:
    """For each sequence that can be scored, a plan per model, with what the store knows."""
    wishes = _wishes(request, salt)
    found = iter(await store.find([wanted for row in wishes for _, _, wanted in row]))
    return [[Plan(model, each, wanted, next(found)) for model, each, wanted in row] for row in wishes]


def _wishes(request: Request, salt: str) -> list[list[tuple[Model, Sequence, Wanted]]]:
    """For each sequence that can be scored, what is wanted of it from each model."""
    models = request.draft.models
    return [
        [(model, each, _wanted(model, each, top20, salt)) for model, top20 in models]
        for each in request.sequences
        if isinstance(each, Sequence)
    ]


def _wanted(model: Model, sequence: Sequence, top20: bool, salt: str) -> Wanted:
    length = len(sequence.token_ids)
    keys = content_keys(model.engine.info.content_fingerprint(length), sequence.token_ids, salt)
    return Wanted(keys, length, sequence.score_from, top20)


async def _compute(
    missing: Many[Plan], draft: Draft, caller: Caller, salt: str, shared: Resources
) -> tuple[list[Work], Remaining | None]:
    """Give each plan its work, some of it in progress already, and wait for all. Charges the team for what is new, and
    gives back what was not done. The works, and what the charge left."""
    flow = Flow(caller.team, draft.service_class, caller.limits.weight)
    _join(missing, flow)  # from here on it cannot go away
    new: dict[tuple[str, bytes], New] = {}
    charge: Charge | None = None
    try:
        with _refusals(shared, caller, draft), shared.tracer.span("charge"):
            charge = await shared.quota.charge(caller, sum(each.price for each in unbegun(missing).values()))
        # Somebody may have begun with it meanwhile, or be done.
        _join(missing, flow)
        for plan in missing:
            if plan.work is None:
                plan.known = max(plan.known, shared.store.recall(plan.wanted), key=lambda rows: rows.shape[1])
        missing = [plan for plan in missing if plan.missing]
        new = unbegun(missing)
        # No await from here to the joins: what is admitted is exactly what is enqueued.
        with _refusals(shared, caller, draft):
            tokens = sum(each.wanted.length for each in new.values())
            shared.admission.admit(caller.team, caller.limits.weight, tokens)
        for each in new.values():
            dispatcher = each.plan.model.dispatcher
            each.work = dispatcher.enqueue(each.wanted, each.plan.sequence.token_ids, flow, salt)
        for plan in missing:
            if plan.work is None and (work := new[plan.place].work) is not None:
                plan.work = plan.model.dispatcher.join(work, flow)
        works = [plan.work for plan in missing if plan.work is not None]
        if works:
            with shared.tracer.span("queue and engine", tokens=tokens, sequences=len(works)):
                await asyncio.wait({work.done for work in works})
        return works, charge.remaining
    finally:
        for plan in missing:
            if plan.work is not None:
                plan.model.dispatcher.leave(plan.work)
        if charge is not None:
            charge.refund(charge.tokens - sum(each.price for each in new.values() if not each.undone))
            charge.close()


@contextlib.contextmanager
def _refusals(shared: Resources, caller: Caller, draft: Draft) -> Iterator[None]:
    """Tells of a refusal on its way out."""
    try:
        yield
    except REFUSALS as error:
        shared.refused(caller, draft.model.name, error.reason)
        raise


def _join(missing: Many[Plan], flow: Flow) -> None:
    """Give plans the work in progress that answers them."""
    for plan in missing:
        work = plan.model.dispatcher.find(plan.rest) if plan.work is None else None
        if work is not None:
            plan.work = plan.model.dispatcher.join(work, flow)


def _cost(plans: list[list[Plan]], works: list[Work], arrived: float) -> Cost:
    cost = Cost(sum(min(plan.known_tokens for plan in row) for row in plans))
    if works:
        began = max(arrived, min(work.started or arrived for work in works))
        cost.queue_ms, cost.engine_ms = 1000 * (began - arrived), 1000 * (time.monotonic() - began)
    return cost


def _by_model(plans: list[list[Plan]], answers: list[list[Known]]) -> dict[str, tuple[int, int]]:
    by_model: dict[str, tuple[int, int]] = {}
    for row, known in zip(plans, answers, strict=True):
        if any(isinstance(each.rows, ApiError) for each in known):
            continue
        for plan in row:
            tokens, cached = by_model.get(plan.model.name, (0, 0))
            by_model[plan.model.name] = tokens + plan.wanted.length, cached + plan.known_tokens
    return by_model


def _raise_if_all_failed(known: list[list[Known] | None]) -> None:
    """Where the server failed on every single sequence, the request failed."""
    errors = [[k.rows for k in row or () if isinstance(k.rows, ApiError) and k.rows.status >= 500] for row in known]
    if all(errors):
        first = errors[0][0]
        raise type(first)(
            f"all {len(errors)} sequences failed; the first: {first.message}", retry_after=first.retry_after
        )
