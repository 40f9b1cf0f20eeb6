"""ProFit: train only on tokens whose probability lies in a range."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidParameter
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.student.source import StudentParams

_FACTOR, _TERM, _MODULUS, _SHIFT = 1_103_515_245, 12_345, 2**31, 15
"""Of a linear congruential generator, and of the shift that mixes its high bits into its low ones."""


class ProfitParams(StudentParams):
    """Parameters of `profit`; defaults are the authors'."""

    mode: Literal["higher", "lower", "middle", "random"] = "higher"
    """`higher` keeps p >= tau, `lower` p <= tau, `middle` tau <= p <= upper; `random`, a control, drops a share tau."""
    tau: float = Field(0.1, ge=0, le=1)
    """Threshold on the probability; in mode `random` the probability that a token is dropped."""
    upper: float | None = Field(None, ge=0, le=1)
    """Mode `middle` only: the greatest probability kept."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Mode `random` only: another seed drops other tokens."""

    @model_validator(mode="after")
    def _upper_goes_with_middle(self) -> Self:
        if (self.mode == "middle") != (self.upper is not None):
            raise ValueError('upper goes with mode "middle", and only with it')
        if self.upper is not None and self.upper < self.tau:
            raise ValueError(f"upper must be at least tau, {self.tau}")
        if self.seed and self.mode != "random":
            raise ValueError('seed goes with mode "random" only')
        return self


def profit(inputs: Inputs, params: ProfitParams, *, xp: Namespace) -> Array:
    """Train only on tokens the model finds likely enough; the others are taken for replaceable wording.

    w_t = 1[p >= tau], or 1[p <= tau], or 1[tau <= p <= upper], or 1[u_t >= tau] with u_t drawn evenly from [0, 1)

    The authors' code divides by all valid tokens whenever the trainer passes their number, which it does in their
    training, and by the kept ones otherwise. All is taken here: it is what they trained with, and it does not raise the
    weight of the kept tokens because others were dropped. In mode `random` they draw anew at every step; here a token's
    draw is made of the seed, its id, the id before it and its place, so that it is the same wherever it is computed.
    """
    p = xp.exp(inputs.evidence(params.source).logprob)
    judged = _drawn(inputs, params.seed, xp=xp) if params.mode == "random" else p
    kept = judged <= params.tau if params.mode == "lower" else judged >= params.tau
    if params.upper is not None:
        kept = kept & (p <= params.upper)
    return xp.where(kept, xp.ones_like(p), xp.zeros_like(p))


def _drawn(inputs: Inputs, seed: int, *, xp: Namespace) -> Array:
    """A float64 in [0, 1) for each token, by a hash in whole numbers: the same on every backend and device."""
    ids = inputs.token_ids
    if ids is None:
        raise InvalidParameter("method.params.mode: 'random' draws by token ids, which are not available here")
    before = xp.concat([xp.zeros_like(ids[..., :1]), ids[..., :-1]], axis=-1)
    state = xp.full_like(ids, seed)
    for part in (ids, before, xp.arange(ids.shape[-1], dtype=ids.dtype, device=ids.device), 0, 0):
        state = xp.remainder((state + part) * _FACTOR + _TERM, _MODULUS)  # below 2**63 throughout
        state = xp.bitwise_xor(state, xp.bitwise_right_shift(state, xp.full_like(state, _SHIFT)))
    return xp.astype(state, xp.float64) / _MODULUS


PROFIT = Method(
    name="profit",
    version=1,
    sign="positive",
    roles=("student",),
    scope="token",
    denominator="all",
    equation="w_t = 1[p >= tau], 1[p <= tau], 1[tau <= p <= upper] or 1[random >= tau]",
    citation="ProFit, arXiv 2601.09195",
    verified="authors' code",
    params=ProfitParams,
    formula=profit,
)
