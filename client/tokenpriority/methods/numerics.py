"""Functions the array API standard leaves out, for formulas. Stable at the ends; knows no method."""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace


def stop_gradient(values: Array) -> Array:
    """The same values as a constant: no gradient flows back through them (torch); numpy's as they are."""
    return values.detach() if hasattr(values, "detach") else values


def log_softmax(logits: Array, *, xp: Namespace) -> Array:
    """log of the softmax over the last axis."""
    shifted = logits - stop_gradient(xp.max(logits, axis=-1, keepdims=True))
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


def pick(values: Array, token_ids: Array, *, xp: Namespace) -> Array:
    """values[..., t, token_ids[..., t]]: (..., T, V) -> (..., T)."""
    return xp.take_along_axis(values, token_ids[..., None], axis=-1)[..., 0]


def log_sigmoid(values: Array, *, xp: Namespace) -> Array:
    """log(1 / (1 + exp(-x))), finite for every finite x."""
    zero = xp.zeros_like(values)
    return xp.minimum(values, zero) - xp.log1p(xp.exp(-xp.abs(values)))


def sigmoid(values: Array, *, xp: Namespace) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return xp.exp(log_sigmoid(values, xp=xp))


def log_complement(logprob: Array, *, xp: Namespace) -> Array:
    """log(1 - p) from log p <= 0, exact at both ends; -inf at log p = 0."""
    rare = logprob < -0.6931471805599453
    # Both branches run everywhere, so each gets a harmless value where it is not used.
    low = xp.log1p(-xp.exp(xp.where(rare, logprob, xp.full_like(logprob, -1.0))))
    high = xp.log(-xp.expm1(xp.where(rare, xp.full_like(logprob, -1.0), logprob)))
    return xp.where(rare, low, high)
