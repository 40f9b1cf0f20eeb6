"""TALR: a power of the probability whose temperature follows the losses of the micro-batch."""

from __future__ import annotations

import math

from tokenpriority.arrays import Array, Namespace
from tokenpriority.methods.inputs import Inputs
from tokenpriority.methods.method import Method
from tokenpriority.methods.scope import count, mean, median
from tokenpriority.methods.student.source import StudentParams

_LEAST_LOGPROB = math.log(1e-6)
_LEAST_TAU = 1e-6
_LEAST_WEIGHT = 0.01


class TalrParams(StudentParams):
    """Parameters of `talr`; its floors are those of third-party code, the authors' own not being public."""


def talr(inputs: Inputs, params: TalrParams, *, xp: Namespace) -> Array:
    """Weight each token by a power of its probability, softer in a micro-batch of high loss.

    w_t = max(max(p, 1e-6)^(1 / tau), 0.01), constant
    tau = the median over the micro-batch's sequences of their mean NLL, at least 1e-6

    Sequences without a scored token have no loss and no part in the median. Of an even number of sequences the lower
    of the middle two is taken, as `torch.median` does: tau is then the loss of a sequence that is there.
    """
    logprob = inputs.evidence(params.source).logprob
    scored = count(inputs.mask, xp=xp) > 0
    tau = median(-mean(logprob, inputs.mask, xp=xp), scored, axis=None, xp=xp)
    tau = xp.maximum(tau, xp.full_like(tau, _LEAST_TAU))
    powered = xp.exp(xp.maximum(logprob, xp.full_like(logprob, _LEAST_LOGPROB)) / tau)
    return xp.maximum(powered, xp.full_like(powered, _LEAST_WEIGHT))


TALR = Method(
    name="talr",
    version=1,
    sign="positive",
    roles=("student",),
    scope="batch",
    denominator="all",
    equation="w_t = max(max(p, 1e-6)^(1/tau), 0.01), tau = median of the sequences' mean NLL",
    citation="TALR, arXiv 2509.20758",
    verified="third-party code",
    params=TalrParams,
    formula=talr,
)
