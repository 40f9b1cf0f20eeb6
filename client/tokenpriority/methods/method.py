"""What a priority method is: a preset over named steps, each pinned.

    signal -> scope -> sign -> schedule -> clip -> denominator

Knows the shape of a method, of its inputs and of its parameters, and applies one. Knows no formula: those stand in
the sibling files, one noun each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import EngineFault, InvalidParameter, shown
from tokenpriority.evidence import SIGNALS, Evidence

Role = Literal["reference", "base", "student"]
Source = Literal["reference", "student"]
Denominator = Literal["all", "kept", "by_sign"]
"""What a micro-batch's weighted sum is divided by, counted over the whole global batch: `all` valid tokens; `kept`,
those of non-zero priority; `by_sign`, positives and negatives each by their own count. Never the sum of weights."""
Negatives = Literal["unlikelihood", "ascent"]
"""How a negative priority acts: bounded `-|w| log(1-p)` pushed down, or plain gradient ascent on the NLL."""


class Params(BaseModel):
    """Base of every method's parameters: unknown names, wrong types and out-of-range values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a formula may read of one sequence; all arrays of shape (T,), aligned as in `evidence.py`.

    `mask` is boolean, True where a priority is wanted; it is False at index 0. Evidence is finite where the mask is
    True and may be NaN elsewhere.
    """

    mask: Array
    reference: Evidence | None = None
    base: Evidence | None = None
    student: Evidence | None = None

    def evidence(self, role: Role) -> Evidence:
        """The evidence of a role. Raises InvalidParameter if there is none."""
        found: Evidence | None = getattr(self, role)
        if found is None:
            where = "the trainer" if role == "student" else f"a server with a model named {role!r}"
            raise InvalidParameter(f"source {role!r} is not available here; it needs {where}")
        return found


Formula = Callable[..., Array]
"""`(inputs: Inputs, params: P, *, xp: Namespace) -> Array`, priorities of shape (T,) in the evidence's dtype."""


@dataclass(frozen=True, slots=True)
class Method:
    """A named priority method with everything its authors pinned."""

    name: str
    version: int
    """Raised whenever the numbers a method returns change."""
    sign: Literal["positive", "signed"]
    roles: tuple[Role, ...]
    """Whose evidence the formula reads by default; a `source` parameter replaces it."""
    scope: Literal["token", "sequence", "dataset"]
    denominator: Denominator
    equation: str
    citation: str
    verified: Literal["authors' code", "third-party code", "paper", "second-hand", "own"]
    """How the formula was checked; `second-hand` ones are faithful to a summary, not to a source."""
    params: type[Params]
    formula: Formula
    statistic: Formula | None = None
    """What a dataset-scope method ranks tokens by; calibration takes its exact quantile."""
    negatives: Negatives = "unlikelihood"
    ramp: tuple[float, float] | None = None
    """Factor on negative priorities, linear over the training run from the first value to the second."""

    @property
    def summary(self) -> str:
        """The first line of the formula's docstring."""
        return (self.formula.__doc__ or "").strip().split("\n")[0]

    def parse(self, params: Mapping[str, Any] | None = None) -> Any:
        """Checked parameters. Raises InvalidParameter naming the parameter, its value and the limit."""
        try:
            return self.params.model_validate(dict(params or {}))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in ("method", "params", *first["loc"]))
            known = ", ".join(self.params.model_fields) or "none"
            hint = f" (parameters of {self.name}: {known})" if first["type"] == "extra_forbidden" else ""
            got = "" if first["type"].endswith("missing") else f", got {shown(first['input'])}"
            raise InvalidParameter(f"{name}: {first['msg'].removeprefix('Value error, ')}{got}{hint}") from None

    def needs(self, params: Params) -> tuple[Role, ...]:
        """The roles whose evidence these parameters read."""
        source = getattr(params, "source", None)
        return (source,) if source else self.roles


def prioritise(method: Method, params: Params, inputs: Inputs, *, xp: Namespace) -> Array:
    """Priorities of one sequence, shape (T,): the formula's where the mask is True, exactly 0 elsewhere.

    Raises EngineFault if evidence the method may read, or a wanted priority, is not finite: a NaN never leaves here,
    and is never made a zero (a comparison with NaN would make it one).
    """
    for role in method.needs(params):
        _check_finite(inputs.evidence(role), role, inputs.mask, xp=xp)
    weights = method.formula(inputs, params, xp=xp)
    weights = xp.where(inputs.mask, weights, xp.zeros_like(weights))
    if not bool(xp.all(xp.isfinite(weights))):
        raise EngineFault(f"method {method.name}: a priority is not finite; its evidence is missing or broken")
    return weights


def _check_finite(evidence: Evidence, role: Role, mask: Array, *, xp: Namespace) -> None:
    for name in SIGNALS:
        values = getattr(evidence, name)
        if values is not None and not bool(xp.all(xp.isfinite(values) | ~mask)):
            raise EngineFault(f"{role} evidence is missing or broken: {name} is not finite where a priority is wanted")
