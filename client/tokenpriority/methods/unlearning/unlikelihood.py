"""Token-level unlikelihood: plain SFT that also pushes down what the sequence has already said."""

from __future__ import annotations

import math

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.distributions import label_log_prob, log_probs, token_ids_of
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.numerics import log_complement

_LEAST = 1e-5
"""Floor of 1 - p(c), the authors' constant: a candidate's penalty is at most 11.5 nats, and then without gradient."""


class UnlikelihoodParams(Params):
    """Parameters of `unlikelihood`; the default is the authors'."""

    alpha: float = Field(1.0, ge=0, le=100)
    """Weight of the penalty."""


def unlikelihood(inputs: Inputs, params: UnlikelihoodParams, *, xp: Namespace) -> Array:
    """Raise the label and push down every other token that occurred before it in the sequence.

    loss_t = -log p(y_t) - alpha sum_{c in C_t} log(max(1 - p(c), 1e-5)),  C_t = {y_0, ..., y_{t-1}} \\ {y_t}

    C_t is a set: a token that occurred twice counts once. It holds prompt tokens too, and nothing of other sequences,
    which the authors' flattened batch does hold. A negative id, as padding may have, is no candidate; padding of any
    other id stands behind the sequence.
    """
    log_p = log_probs(inputs, "student", xp=xp)
    token_ids = token_ids_of(inputs)
    candidate = _candidates(token_ids, xp=xp) & inputs.mask[..., None]
    columns = xp.where(token_ids < 0, xp.zeros_like(token_ids), token_ids)[..., None, :]
    found = xp.take_along_axis(log_p, xp.broadcast_to(columns, candidate.shape), axis=-1)
    # Held below the floor's log p, so that no gradient is taken at p = 1, where it is infinite.
    bounded = xp.minimum(found, xp.full_like(found, math.log1p(-_LEAST)))
    penalty = xp.where(candidate, -log_complement(bounded, xp=xp), xp.zeros_like(found))
    return params.alpha * xp.sum(penalty, axis=-1) - label_log_prob(log_p, inputs, xp=xp)


def _candidates(token_ids: Array, *, xp: Namespace) -> Array:
    """Boolean (..., T, T): token j stands before token t, is another, and is the first of its kind."""
    place = xp.arange(token_ids.shape[-1], device=token_ids.device)
    before = place[None, :] < place[:, None]
    same = token_ids[..., :, None] == token_ids[..., None, :]
    first = ~xp.any(same & before, axis=-1)
    return before & ~same & (first & (token_ids >= 0))[..., None, :]


UNLIKELIHOOD = Method(
    name="unlikelihood",
    version=1,
    sign="signed",
    roles=("student",),
    scope="sequence",
    denominator="all",
    equation="loss_t = -log p(y_t) - alpha sum_{c before t, c != y_t} log(max(1 - p(c), 1e-5))",
    citation="Unlikelihood training, arXiv 1908.04319",
    verified="authors' code",
    params=UnlikelihoodParams,
    signals=(),
    distributions=("student",),
    loss=unlikelihood,
)
