"""What a priority method is: a preset over named steps, each pinned.

    signal -> scope -> sign -> schedule -> clip -> denominator

Knows the shape of a method and of its parameters, and applies one. Knows no formula: those stand in the folders
beside it, one noun a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokenpriority.arrays import Array, Namespace
from tokenpriority.composition import Schedule
from tokenpriority.errors import EngineFault, InvalidParameter, shown
from tokenpriority.evidence import ENGINE_SIGNALS
from tokenpriority.methods.inputs import Inputs, Role

Denominator = Literal["all", "kept", "by_sign", "sequences"]
"""What a micro-batch's weighted sum is divided by, counted over the whole global batch: `all` valid tokens; `kept`,
those of non-zero priority; `by_sign`, positives and negatives each by their own count; `sequences`, those with a
valid token. Never the sum of weights."""
Negatives = Literal["unlikelihood", "ascent"]
"""How a negative priority acts: bounded `-|w| log(1-p)` pushed down, or plain gradient ascent on the NLL."""
Family = Literal["frozen", "student", "both"]
"""What must be at hand: frozen models only (the server can do it all), the live student only, or both."""


class Params(BaseModel):
    """Base of every method's parameters: unknown names, wrong types and out-of-range values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def signals(self) -> tuple[str, ...] | None:
        """The signals these parameters make the method read, where that is not the same for all; else None."""
        return None


class PairParams(Params):
    """Parameters of a method that compares the request's model with a second frozen one."""

    base: str = Field("base", min_length=1)
    """Name of the server's model that plays the base."""


Formula = Callable[..., Array]
"""`(inputs: Inputs, params: P, *, xp: Namespace) -> Array` of the mask's shape, in the evidence's dtype."""


@dataclass(frozen=True, slots=True)
class Method:
    """A named priority method with everything its authors pinned.

    It has either a `formula`, which gives a weight for the NLL of each token, or a `loss`, which gives the loss of each
    token itself, with gradient, from the student's whole distribution; `loss` methods work in the trainer only.
    """

    name: str
    version: int
    """Raised whenever the numbers a method returns change."""
    sign: Literal["positive", "signed"]
    roles: tuple[Role, ...]
    """Whose evidence or distribution is read by default; a `source` parameter replaces it."""
    scope: Literal["token", "sequence", "batch", "dataset"]
    """Over which set a token's weight is decided; `batch` is the trainer's micro-batch on each process."""
    denominator: Denominator
    equation: str
    citation: str
    verified: Literal["authors' code", "third-party code", "paper", "second-hand", "own"]
    """How the formula was checked; `second-hand` ones are faithful to a summary, not to a source."""
    params: type[Params]
    formula: Formula | None = None
    loss: Formula | None = None
    signals: tuple[str, ...] = ("logprob",)
    """What is read of each role's evidence; nothing of a role in `distributions`."""
    distributions: tuple[Role, ...] = ()
    """Roles whose whole distribution is read: in the trainer only, with a local frozen copy of any but the student."""
    statistic: Formula | None = None
    """What a dataset-scope method ranks tokens by; calibration takes its exact quantile."""
    negatives: Negatives = "unlikelihood"
    schedule: Schedule | None = None
    """Factor on priorities over the training run; it belongs to the method's own rule for negatives."""
    labels: Literal["over", "inside"] = "over"
    """Whether the caller's signed labels are laid over the priorities, or were read by the formula itself."""
    reads_prompt: bool = False
    """Whether the formula must know which tokens are the prompt."""

    @property
    def body(self) -> Formula:
        """The formula or the loss, whichever it has."""
        return cast(Formula, self.formula or self.loss)

    @property
    def summary(self) -> str:
        """The first line of the body's docstring."""
        return (self.body.__doc__ or "").strip().split("\n")[0]

    @property
    def family(self) -> Family:
        """By the default roles; `uniform`, which reads nothing, is frozen."""
        live = any(role in ("student", "old") for role in self.roles)
        frozen = any(role in ("reference", "base") for role in self.roles)
        return "both" if live and frozen else "student" if live else "frozen"

    @property
    def runs_on_reference(self) -> bool:
        """Whether a server can run it with `source="reference"`: it has that choice, and engines give all it reads."""
        return "source" in self.params.model_fields and set(self.signals) <= set(ENGINE_SIGNALS)

    def parse(self, params: Mapping[str, Any] | None = None) -> Any:
        """Checked parameters. Raises InvalidParameter naming the parameter, its value and the limit."""
        try:
            return self.params.model_validate(dict(params or {}))
        except ValidationError as error:
            # A misspelt name first: that its right spelling is missing follows from it.
            first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
            name = ".".join(str(part) for part in ("method", "params", *first["loc"]))
            known = ", ".join(self.params.model_fields) or "none"
            hint = f" (parameters of {self.name}: {known})" if first["type"] == "extra_forbidden" else ""
            got = "" if first["type"].endswith("missing") else f", got {shown(first['input'])}"
            raise InvalidParameter(f"{name}: {first['msg'].removeprefix('Value error, ')}{got}{hint}") from None

    def needs(self, params: Params) -> tuple[Role, ...]:
        """The roles whose evidence or distribution these parameters read."""
        source = getattr(params, "source", None)
        return (source,) if source else self.roles

    def reads(self, params: Params) -> tuple[str, ...]:
        """The signals these parameters read of each role."""
        own = params.signals()
        return self.signals if own is None else own


def prioritise(method: Method, params: Params, inputs: Inputs, *, xp: Namespace) -> Array:
    """Priorities of the mask's shape: the formula's where the mask is True, exactly 0 elsewhere.

    Raises InvalidParameter if something the method reads is not there, or the method gives losses and no priorities;
    EngineFault if evidence it may read, or a wanted priority, is not finite: a NaN never leaves here, and is never
    made a zero (a comparison with NaN would make it one).
    """
    if method.formula is None:
        raise InvalidParameter(
            f"method {method.name!r} is a loss over whole distributions: it works in the trainer only"
        )
    weights = method.formula(_checked(method, params, inputs, xp), params, xp=xp)
    return _finite(method, weights, inputs.mask, "priority", xp)


def token_losses(method: Method, params: Params, inputs: Inputs, *, xp: Namespace) -> Array:
    """The loss of each token, of the mask's shape: a `loss` method's where the mask is True, exactly 0 elsewhere.

    With gradient, through the student's logits alone. Raises as `prioritise`.
    """
    if method.loss is None:
        raise InvalidParameter(f"method {method.name!r} gives priorities and no loss of its own")
    losses = method.loss(_checked(method, params, inputs, xp), params, xp=xp)
    return _finite(method, losses, inputs.mask, "loss", xp)


def _checked(method: Method, params: Params, inputs: Inputs, xp: Namespace) -> Inputs:
    roles = tuple(role for role in method.needs(params) if role not in method.distributions)
    return inputs.checked(roles, xp=xp)


def _finite(method: Method, values: Array, mask: Array, what: str, xp: Namespace) -> Array:
    values = xp.where(mask, values, xp.zeros_like(values))
    if not bool(xp.all(xp.isfinite(values))):
        raise EngineFault(
            f"method {method.name}: a {what} is not finite; its evidence is missing or broken, or its parameters are "
            "out of range"
        )
    return values
