"""WIT: one weight for the prompt, one for the response."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import InvalidParameter
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method, Params


class WitParams(Params):
    """Parameters of `wit`; the defaults, plain SFT on the response, are the authors'."""

    lambda_p: float = Field(0.0, ge=0, le=100)
    """Weight of the scored tokens of the prompt."""
    lambda_r: float = Field(1.0, ge=0, le=100)
    """Weight of the scored tokens of the response."""

    @model_validator(mode="after")
    def _something_is_learnt(self) -> Self:
        if self.lambda_p == 0 and self.lambda_r == 0:
            raise ValueError("lambda_p and lambda_r cannot both be 0: no token would count")
        return self


def wit(inputs: Inputs, params: WitParams, *, xp: Namespace) -> Array:
    """Weigh the tokens of the prompt and of the response by one number each.

    w_t = lambda_p in the prompt, lambda_r in the response

    Divided by the tokens of non-zero weight this is the authors' (lambda_p sum_prompt nll + lambda_r sum_response nll)
    / (1[lambda_p != 0] |prompt| + 1[lambda_r != 0] |response|). Only scored tokens have a weight, and sequences given
    as prompt + completion or messages score the response alone unless `mask` or `score_from` says otherwise: to weigh
    the prompt too, score it.
    """
    if inputs.prompt is None:
        raise InvalidParameter(
            "method wit must know which tokens are the prompt: give the sequence as prompt + completion or messages"
        )
    one = xp.astype(inputs.mask, xp.float64)
    return xp.where(inputs.prompt, one * params.lambda_p, one * params.lambda_r)


WIT = Method(
    name="wit",
    version=1,
    sign="positive",
    roles=(),
    scope="token",
    denominator="kept",
    equation="w_t = lambda_p in the prompt, lambda_r in the response",
    citation="WIT, arXiv 2507.07817",
    verified="authors' code",
    params=WitParams,
    signals=(),
    formula=wit,
    reads_prompt=True,
)
