"""Whole distributions, as the losses over them read them: log-probs, labels and expectations, safe where masked out.

Knows what is harmless where no loss is wanted, and that 0 log 0 is 0. Knows no method. Shapes: (..., T, V), V the
vocabulary; row t predicts token t. Half-precision logits are the caller's to raise to float32.
"""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidParameter
from tokenpriority.methods.inputs import Inputs, Role
from tokenpriority.methods.numerics import log_softmax, pick, stop_gradient


def logits_of(inputs: Inputs, role: Role, *, xp: Namespace) -> Array:
    """The logits of a role, (..., T, V), 0 in the rows that are masked out: whatever stands there, even NaN, reaches
    neither a loss nor a gradient. Those of any role but the student are constants."""
    logits = inputs.distribution(role)
    if role != "student":
        logits = stop_gradient(logits)
    return xp.where(inputs.mask[..., None], logits, xp.zeros_like(logits))


def log_probs(inputs: Inputs, role: Role, *, xp: Namespace) -> Array:
    """log p(v) of a role, (..., T, V); -inf where a logit is."""
    return log_softmax(logits_of(inputs, role, xp=xp), xp=xp)


def token_ids_of(inputs: Inputs) -> Array:
    """The token ids, (..., T). Raises InvalidParameter if there are none."""
    if inputs.token_ids is None:
        raise InvalidParameter("token ids are not available here; they are needed beside a whole distribution")
    return inputs.token_ids


def labels_of(inputs: Inputs, *, xp: Namespace) -> Array:
    """The token ids, (..., T), 0 where masked out, so that a -100 there indexes nothing."""
    token_ids = token_ids_of(inputs)
    return xp.where(inputs.mask, token_ids, xp.zeros_like(token_ids))


def label_log_prob(log_p: Array, inputs: Inputs, *, xp: Namespace) -> Array:
    """log p(y_t) of each token, (..., T)."""
    return pick(log_p, labels_of(inputs, xp=xp), xp=xp)


def is_label(log_p: Array, inputs: Inputs, *, xp: Namespace) -> Array:
    """Boolean (..., T, V): v = y_t."""
    labels = labels_of(inputs, xp=xp)
    return xp.arange(log_p.shape[-1], dtype=labels.dtype, device=labels.device) == labels[..., None]


def expectation(weights: Array, values: Array, *, xp: Namespace) -> Array:
    """sum_v weights(v) values(v), (..., T); a weight of 0 takes away any value, an infinite one too."""
    counted = weights > 0
    return xp.sum(weights * xp.where(counted, values, xp.zeros_like(values)), axis=-1)


def cross_entropy(log_target: Array, log_p: Array, *, xp: Namespace) -> Array:
    """-sum_v t(v) log p(v), (..., T), with the target t a constant."""
    return -expectation(xp.exp(stop_gradient(log_target)), log_p, xp=xp)
