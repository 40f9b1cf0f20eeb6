"""Scores -> the bytes of an answer.

Knows the response structs and how their arrays are packed. Each result is encoded on its own, so that a large answer
is many short steps and a thread doing it leaves the event loop its turns.
"""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from tokenpriority import wire
from tokenpriority.schema import ErrorBody, MethodRef, ModelRef, ResultItem, Usage
from tokenpriority_service.door import Request
from tokenpriority_service.item import Refused
from tokenpriority_service.models import Model
from tokenpriority_service.scoring import Cost, Scored


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


def _reference(model: Model) -> ModelRef:
    return ModelRef(name=model.name, fingerprint=model.engine.info.fingerprint)


def _result(scored: Scored | Refused, signals: tuple[str, ...], media_type: str) -> ResultItem:
    if isinstance(scored, Refused):
        error = scored.error
        return ResultItem(id=scored.id, error=ErrorBody(type=error.type, message=error.message))
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
