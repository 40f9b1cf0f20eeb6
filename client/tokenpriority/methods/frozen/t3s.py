"""T3S: leave out what a first run learns at once, and train on the rest."""

from __future__ import annotations

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.frozen.excess import excess
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, PairParams


class T3sParams(PairParams):
    """Parameters of `t3s`: the threshold is 0, and there is no other."""


def t3s(inputs: Inputs, params: T3sParams, *, xp: Namespace) -> Array:
    """Drop the tokens that grew more confident up to the bottleneck of an earlier run; keep the others.

    w_t = 1[log p_ref(y_t) - log p_base(y_t) <= 0]

    Reference: the checkpoint of that run at its imitation bottleneck, where accuracy on the training problems is
    lowest. Base: the model it began with, from which the run with these weights begins again. A token whose confidence
    did not move is kept. The direction is the opposite of `token_cleaning` and `forgetting`, which keep the tokens that
    the reference improves on. The published objective is a plain sum and its divisor is not known; here it is the
    number of all scored tokens.
    """
    gain = excess(inputs, params, xp=xp)
    return xp.where(gain <= 0, xp.ones_like(gain), xp.zeros_like(gain))


T3S = Method(
    name="t3s",
    version=1,
    sign="positive",
    roles=("reference", "base"),
    scope="token",
    denominator="all",
    equation="w_t = 1[log p_ref(y_t) - log p_base(y_t) <= 0]",
    citation="T3S, arXiv 2601.10348",
    verified="second-hand",
    params=T3sParams,
    formula=t3s,
)
