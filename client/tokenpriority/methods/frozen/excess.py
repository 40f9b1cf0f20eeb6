"""Methods that rank tokens by how much a warmed reference improves on its base: Token Cleaning and Forgetting.

Both score s_t = log p_ref(y_t) - log p_base(y_t) and keep the best share; Forgetting pushes the rest down. The score
itself stands here for every other method that compares two frozen models.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenpriority.arrays import Array, Namespace
from tokenpriority.composition import Schedule
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params
from tokenpriority.methods.scope import RankingParams, best, floor_share, kept

T_MAX, T_MIN = 0.25, 1e-5
"""The authors' bounds of lambda."""

FORGETTING_SCHEDULE = Schedule(end=T_MAX - T_MIN, over="epoch")
"""As the authors' code: lambda(step) = (t_max - t_min) step / max_train_steps, with `step` counted within the epoch and
max_train_steps over the run, and without the `+ t_min` of the paper. With both fixes: Schedule(start=T_MIN, end=T_MAX).
Their script runs one epoch, where `over` makes no difference."""


class TokenCleaningParams(RankingParams):
    """Parameters of `token_cleaning`; defaults are the authors' (`data_prop`, `select_token_level`)."""


class ForgettingParams(RankingParams):
    """Parameters of `forgetting`; the share is the authors', their scope is the dataset."""

    keep: float = Field(0.7, gt=0, le=1)
    """Share of the scored tokens that is trained on; the rest is forgotten."""
    scope: Literal["sequence", "dataset"] = "dataset"
    """Over which set the share is taken."""


def excess(inputs: Inputs, params: Params, *, xp: Namespace) -> Array:  # noqa: ARG001
    """How much the reference improves on the base, s_t = log p_ref(y_t) - log p_base(y_t), nats."""
    return inputs.evidence("reference").logprob - inputs.evidence("base").logprob


def token_cleaning(inputs: Inputs, params: TokenCleaningParams, *, xp: Namespace) -> Array:
    """Keep the tokens on which the reference improves most on the base; drop the others.

    w_t = 1[s_t among the best floor(n * keep)], n the scored tokens of the sequence; or 1[s_t >= threshold].

    Reference: the base warmed up on some of the data. Of equal scores the earlier token is kept first; a threshold
    keeps all or none of them. The authors' scripts rank over the whole dataset, their function's default is the
    sequence. Self-evolving cleaning is the same rule, each round with the model of the round before as the reference
    and the same base.
    """
    score = excess(inputs, params, xp=xp)
    return xp.where(kept(score, inputs.mask, params, xp=xp), xp.ones_like(score), xp.zeros_like(score))


def forgetting(inputs: Inputs, params: ForgettingParams, *, xp: Namespace) -> Array:
    """Train on the tokens on which the reference improves most, and forget the others.

    w_t = +1 for the best floor(n * keep), -1 for the next floor(n * (1 - keep)) (the floors may leave one token at
    0); with a threshold, +1 at or above it and -1 below. The method's schedule scales the negatives and both signs have
    denominators of their own, which gives the authors' sum_pos nll / n_pos - lambda(step) sum_neg nll / n_neg, counted
    over the global batch where theirs are of each micro-batch. The negatives are plain gradient ascent, unbounded and
    unclipped, as in their code.
    """
    score = excess(inputs, params, xp=xp)
    positive = kept(score, inputs.mask, params, xp=xp)
    negative = inputs.mask & ~positive
    if params.threshold is None:
        last = floor_share(inputs.mask, params.keep, xp=xp) + floor_share(inputs.mask, 1 - params.keep, xp=xp)
        negative = negative & best(score, inputs.mask, last, xp=xp)
    one = xp.ones_like(score)
    return xp.where(positive, one, xp.where(negative, -one, xp.zeros_like(score)))


TOKEN_CLEANING = Method(
    name="token_cleaning",
    version=1,
    sign="positive",
    roles=("reference", "base"),
    scope="sequence",
    denominator="kept",
    equation="w_t = 1[log p_ref(y_t) - log p_base(y_t) in the best share]",
    citation="Token Cleaning, arXiv 2502.01968",
    verified="authors' code",
    params=TokenCleaningParams,
    formula=token_cleaning,
    statistic=excess,
)

FORGETTING = Method(
    name="forgetting",
    version=1,
    sign="signed",
    roles=("reference", "base"),
    scope="dataset",
    denominator="by_sign",
    equation="w_t = +1 in the best share of log p_ref(y_t) - log p_base(y_t), else -1",
    citation="Forgetting, arXiv 2508.04329",
    verified="authors' code",
    params=ForgettingParams,
    formula=forgetting,
    statistic=excess,
    negatives="ascent",
    schedule=FORGETTING_SCHEDULE,
)
