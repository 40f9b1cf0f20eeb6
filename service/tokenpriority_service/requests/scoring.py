"""From evidence to scores: method, labels.

Pure computation, safe in any thread. Knows nothing of where evidence comes from, of HTTP or of bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from tokenpriority import spans
from tokenpriority.arrays import Namespace
from tokenpriority.errors import ApiError
from tokenpriority.evidence import ENGINE_SIGNALS, SIGNALS, Evidence
from tokenpriority.methods import Inputs, prioritise
from tokenpriority_service.requests.door import Draft, Request
from tokenpriority_service.requests.gathering import Gathered
from tokenpriority_service.requests.item import Refused, Sequence
from tokenpriority_service.requests.plan import Known

NUMPY = cast(Namespace, np)


@dataclass(frozen=True, slots=True)
class Scored:
    """The scores of one sequence; arrays of shape (T,), float32."""

    sequence: Sequence
    evidence: Evidence
    """Of the request's model; NaN before the first scored token."""
    priorities: np.ndarray[Any, np.dtype[np.float32]]
    cached: bool


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
