"""How priorities become a loss: denominator, rule for negatives, ramp and the live student's factor.

Knows the choices and their defaults, which are the method's own. Knows nothing of tensors beyond the one factor that
only the forward pass can give.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import array_api_compat.torch as torch_namespace
import numpy as np
from torch import Tensor

from tokenpriority.arrays import Namespace
from tokenpriority.errors import TokenPriorityError
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Denominator, Inputs, Method, Negatives, Params, get_method, prioritise
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.ramp import ASCENT_RAMP, LIMIT, Ramp, is_ramp

TORCH = cast(Namespace, torch_namespace)


@dataclass(frozen=True, slots=True)
class StudentFactor:
    """A positive method of the live student, computed in the forward pass from its logprob and entropy.

    The factor multiplies positive weights: it says how much of a token there is to learn. Negative weights are left
    alone; how hard a token is pushed down is the business of the rule for negatives.
    """

    method: Method
    params: Params

    @classmethod
    def of(cls, name: str, params: Mapping[str, Any] | None = None) -> StudentFactor:
        """The factor of a registered method. Raises ConfigError if the student alone cannot supply it."""
        method = get_method(name)
        if method.sign != "positive" or method.scope != "token":
            raise ConfigError(f"student: {name!r} is {method.sign} and of scope {method.scope}, not positive per token")
        source = {"source": "student"} if "source" in method.params.model_fields else {}
        factor = cls(method, method.parse({**source, **(params or {})}))
        if method.needs(factor.params) != ("student",):
            raise ConfigError(f"student: {name!r} does not read the live student")
        value = np.full(1, -1.0, np.float32)
        try:
            prioritise(method, factor.params, Inputs(np.ones(1, np.bool_), student=Evidence(value, -value)), xp=np)
        except TokenPriorityError as error:
            raise ConfigError(f"student: {name!r} needs more than logprob and entropy: {error}") from None
        return factor

    def __call__(self, logprob: Tensor, entropy: Tensor, mask: Tensor) -> Tensor:
        """The factor of each token, shape of `logprob`, without gradient; 0 where the mask is False."""
        student = Evidence(logprob.detach(), entropy.detach())
        return cast(Tensor, prioritise(self.method, self.params, Inputs(mask, student=student), xp=TORCH))


@dataclass(frozen=True, slots=True)
class Weighting:
    """How the trainer turns priorities into a loss; see `loss.py` for the equation.

    Raises ConfigError for a ramp that is not two finite numbers >= 0, not both 0.
    """

    denominator: Denominator = "all"
    """Which count of the global batch divides."""
    negatives: Negatives = "unlikelihood"
    """How a negative weight acts."""
    ramp: Ramp | None = None
    """Factor on negative weights, linear over all optimiser steps of the run; None for 1 throughout."""
    student: StudentFactor | None = None
    """Live factor on positive weights."""

    def __post_init__(self) -> None:
        if self.ramp is not None and not is_ramp(self.ramp):
            raise ConfigError(f"ramp: {LIMIT}, got {self.ramp!r}")

    @classmethod
    def of(
        cls,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        *,
        denominator: Denominator | None = None,
        negatives: Negatives | None = None,
        ramp: Ramp | None = None,
        student: str | None = None,
    ) -> Weighting:
        """The method's own weighting with the given parts replaced.

        A method's ramp belongs to its rule for negatives and goes when that is replaced; ascent without a ramp of the
        caller or the method gets ASCENT_RAMP. A method of the live student (`dft`) is itself the student factor.
        Raises NotFound or InvalidParameter for an unknown method or parameter, ConfigError for a student factor or a
        ramp that cannot be.
        """
        chosen = get_method(method)
        live = is_live(method, params)
        if live and student is not None:
            raise ConfigError(f"student: method {method!r} is a factor of the live student already")
        factor = StudentFactor.of(method, params) if live else None
        rule = negatives or chosen.negatives
        return cls(
            denominator=denominator or chosen.denominator,
            negatives=rule,
            ramp=ramp if ramp is not None else _default_ramp(chosen, rule),
            student=StudentFactor.of(student) if student is not None else factor,
        )


def _default_ramp(method: Method, negatives: Negatives) -> Ramp | None:
    """The method's ramp under its own rule for negatives; else ASCENT_RAMP for ascent, which is unbounded."""
    if negatives == method.negatives and method.ramp is not None:
        return method.ramp
    return ASCENT_RAMP if negatives == "ascent" else None


def is_live(method: str, params: Mapping[str, Any] | None = None) -> bool:
    """Whether these parameters make the method read the live student."""
    chosen = get_method(method)
    return "student" in chosen.needs(chosen.parse(params))
