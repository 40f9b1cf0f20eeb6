"""TIS-DPO's token weights: how much more a model tuned for the preferred answers likes a token than its opposite."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.frozen.excess import excess
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, PairParams
from tokenpriority.methods.scope import best, count, descending_rank, floor_share


class TisDpoParams(PairParams):
    """Parameters of `tis_dpo`; the defaults are those of the authors' instructions and functions."""

    transform: Literal["origin", "binary", "threshold", "threshold_and_scale", "rank_based"] = "rank_based"
    """What is made of the rounded log-ratio; their sixth, random weights, reads no token and is left out."""
    keep: float = Field(1.0, gt=0, le=1)
    """`binary` only: the share of a sequence's scored tokens that is kept."""
    ties: Literal["value", "place"] = "value"
    """`binary` only: equal ratios at the cut are all dropped (`value`, what the authors' code does), or the earlier
    ones are kept until the share is full (`place`)."""

    @model_validator(mode="after")
    def _share_goes_with_binary(self) -> Self:
        if self.transform != "binary" and (self.keep != 1 or self.ties != "value"):
            raise ValueError(f'keep and ties go with transform "binary" only, not with "{self.transform}"')
        return self


def tis_dpo(inputs: Inputs, params: TisDpoParams, *, xp: Namespace) -> Array:
    """Weigh tokens by the log-ratio of a DPO model to a reverse DPO model.

    r_t = log p_ref(y_t) - log p_base(y_t), rounded to 2 decimals (half to even); then w_t, by `transform`, is
    origin: r_t; binary: 1[r_t in the best share]; threshold: r_t clipped to [-1, 1];
    threshold_and_scale: 0.7 + 0.6 (c_t + 1.5) / 3 with c_t = r_t clipped to [-1.5, 1.5];
    rank_based: 0.7 + 0.6 i / (n - 1), i = 0 for the least r_t of the n scored tokens (1 if n = 1).

    Reference: the model tuned by DPO. Base: the one tuned by DPO with preferred and rejected answers exchanged; the
    other way round every ratio changes its sign. The rounding makes ties common: `rank_based` ranks the earlier of
    equal ratios lower, and `binary` with `ties="value"` drops all that share the ratio at the cut, so it may keep far
    fewer tokens than `keep`, or none. The weights are made for the sums of log-ratios inside a DPO loss, where a
    sigmoid bounds a negative one; here they weigh the NLL of SFT, where negative ones (origin, threshold) act as the
    method's `negatives` say. The authors give an appended end-of-sequence token weight 0; mask it for the same.
    """
    ratio = xp.round(excess(inputs, params, xp=xp) * 100) / 100
    if params.transform == "origin":
        return ratio
    if params.transform == "threshold":
        return xp.clip(ratio, -1.0, 1.0)
    if params.transform == "threshold_and_scale":
        return 0.7 + 0.2 * (xp.clip(ratio, -1.5, 1.5) + 1.5)
    if params.transform == "rank_based":
        return _by_rank(ratio, inputs.mask, xp=xp)
    chosen = _best_share(ratio, inputs.mask, params, xp=xp)
    return xp.where(chosen, xp.ones_like(ratio), xp.zeros_like(ratio))


def _by_rank(ratio: Array, mask: Array, *, xp: Namespace) -> Array:
    """0.7 for each sequence's least ratio to 1.3 for its greatest, in equal steps."""
    rank = xp.astype(descending_rank(-ratio, mask, xp=xp), ratio.dtype)
    steps = xp.astype(count(mask, xp=xp), ratio.dtype) - 1
    one = xp.ones_like(ratio)
    return xp.where(steps > 0, 0.7 + 0.6 * rank / xp.maximum(steps, xp.ones_like(steps)), one)


def _best_share(ratio: Array, mask: Array, params: TisDpoParams, *, xp: Namespace) -> Array:
    """Boolean: the floor(n * keep) greatest ratios of each sequence; by value, less those equal to one left out."""
    chosen = best(ratio, mask, floor_share(mask, params.keep, xp=xp), xp=xp)
    if params.ties == "place":
        return chosen
    left_out = xp.where(mask & ~chosen, ratio, xp.full_like(ratio, -xp.inf))
    return chosen & (ratio > xp.max(left_out, axis=-1, keepdims=True))


TIS_DPO = Method(
    name="tis_dpo",
    version=1,
    sign="signed",
    roles=("reference", "base"),
    scope="sequence",
    denominator="all",
    equation="w_t = transform(round(log p_ref(y_t) - log p_base(y_t), 2))",
    citation="TIS-DPO (its token weights), arXiv 2410.04350",
    verified="authors' code",
    params=TisDpoParams,
    formula=tis_dpo,
)
