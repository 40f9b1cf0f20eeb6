"""Scores -> the bytes of an answer.

Knows the response structs and how their arrays are packed. Each result is encoded on its own, so that a large answer
is many short steps and a thread doing it leaves the event loop its turns.
"""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from tokenpriority import wire
from tokenpriority.schema import CoverageItem, CoverageResponse, ErrorBody, MethodRef, ModelRef, ResultItem, Usage
from tokenpriority_service.models import Model
from tokenpriority_service.requests.door import Request
from tokenpriority_service.requests.gathering import Cost
from tokenpriority_service.requests.item import Refused, Sequence
from tokenpriority_service.requests.scoring import Scored


class _Answer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A PriorityResponse whose results are already encoded."""

    model: ModelRef
    base: ModelRef | UnsetType = UNSET
    method: MethodRef
    results: list[msgspec.Raw]
    usage: Usage


def write(request: Request, scored: list[Scored | Refused], cost: Cost, media_type: str) -> bytes:
    """The body of an answer to POST /v1/priorities; pure computation, safe in any thread."""
    draft = request.draft
    answer = _Answer(
        model=_reference(draft.model),
        base=UNSET if draft.base is None else _reference(draft.base),
        method=MethodRef(name=draft.method.name, version=draft.method.version, params=draft.params.model_dump()),
        results=[msgspec.Raw(wire.encode(_result(each, draft.signals, media_type), media_type)) for each in scored],
        usage=Usage(
            tokens=request.tokens,
            cached_tokens=cost.cached_tokens,
            queue_ms=round(cost.queue_ms, 3),
            engine_ms=round(cost.engine_ms, 3),
        ),
    )
    return wire.encode(answer, media_type)


def write_coverage(request: Request, stored: list[int | None], media_type: str) -> bytes:
    """The body of an answer to POST /v1/coverage; `stored` as `gathering.coverage` gives it."""
    items = [_coverage(each, known) for each, known in zip(request.sequences, stored, strict=True)]
    whole = [(item.tokens, item.stored_tokens) for item in items if item.error is UNSET]
    draft = request.draft
    answer = CoverageResponse(
        model=_reference(draft.model),
        base=UNSET if draft.base is None else _reference(draft.base),
        results=items,
        sequences=len(whole),
        stored_sequences=sum(tokens == known for tokens, known in whole),
        tokens=request.tokens,
        stored_tokens=sum(known or 0 for _, known in whole),
    )
    return wire.encode(answer, media_type)


def _coverage(sequence: Sequence | Refused, stored: int | None) -> CoverageItem:
    if isinstance(sequence, Refused):
        return CoverageItem(id=sequence.id, error=_error(sequence))
    return CoverageItem(id=sequence.id, tokens=len(sequence.token_ids), stored_tokens=stored or 0)


def _error(refused: Refused) -> ErrorBody:
    return ErrorBody(type=refused.error.type, message=refused.error.message)


def _reference(model: Model) -> ModelRef:
    return ModelRef(name=model.name, fingerprint=model.engine.info.fingerprint)


def _result(scored: Scored | Refused, signals: tuple[str, ...], media_type: str) -> ResultItem:
    if isinstance(scored, Refused):
        return ResultItem(id=scored.id, error=_error(scored))
    sequence = scored.sequence
    result = ResultItem(
        id=sequence.id,
        token_ids=wire.pack(sequence.token_ids, wire.U4, media_type),
        logprobs=wire.pack(scored.evidence.logprob, wire.F4, media_type),
        priorities=wire.pack(scored.priorities, wire.F4, media_type),
        signals={name: wire.pack(scored.evidence.signal(name), wire.F4, media_type) for name in signals},
        cached=scored.cached,
    )
    if sequence.surface is not None and sequence.surface.offsets is not None:
        result.offsets = wire.pack(sequence.surface.offsets.astype(np.uint32).ravel(), wire.U4, media_type)
        result.text = sequence.surface.text
    return result
