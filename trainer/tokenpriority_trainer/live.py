"""A method that is computed in the forward pass: what it needs, what it reads and what it gives.

Knows which methods cannot be finished before the student has run, and applies one to rows of documents. Knows nothing
of models and batches; it is given evidence and distributions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import array_api_compat.torch as torch_namespace
import torch
from torch import Tensor

from tokenpriority import spans
from tokenpriority.arrays import Namespace
from tokenpriority.methods import Inputs, Method, Params, Role, get_method, prioritise, token_losses
from tokenpriority_trainer.errors import ConfigError

TORCH = cast(Namespace, torch_namespace)

Part = Literal["student", "forget", "method"]
"""Which weights a live method decides: `student` multiplies the positive ones, `forget` the negative ones by the size
of its own, `method` is the method of the run itself."""


@dataclass(frozen=True, slots=True)
class LiveMethod:
    """A method and its parameters, run on the micro-batch's documents."""

    method: Method
    params: Params

    @classmethod
    def of(cls, part: Part, name: str, params: Mapping[str, Any] | None = None) -> Self:
        """The method of this name; a factor reads the live student where it has the choice.

        Raises NotFound, InvalidParameter, or ConfigError if the method cannot play this part.
        """
        method = get_method(name)
        source = {"source": "student"} if part != "method" and "source" in method.params.model_fields else {}
        found = cls(method, method.parse({**source, **(params or {})}))
        if part == "student" and (method.sign != "positive" or method.loss is not None):
            kind = "a loss" if method.loss is not None else method.sign
            raise ConfigError(f"student: {name!r} is {kind}, not a positive weight")
        if part == "forget" and (method.sign != "signed" or method.labels != "inside" or method.loss is not None):
            raise ConfigError(f"forget: {name!r} is not an unlearning method that gives weights")
        if part == "forget" and getattr(found.params, "forget", "all") != "all":
            raise ConfigError("forget_params.forget: must be 'all', since negative weights say what is forgotten")
        if part == "student" and "student" not in found.roles:
            raise ConfigError(f"student: {name!r} does not read the live student")
        return found

    @property
    def roles(self) -> tuple[Role, ...]:
        """Whose evidence or distribution is read."""
        return self.method.needs(self.params)

    @property
    def distributions(self) -> tuple[Role, ...]:
        """Of whom whole distributions are read."""
        return tuple(role for role in self.method.distributions if role in self.roles)

    def signals(self, role: Role) -> tuple[str, ...]:
        """The signals read of a role; none of one whose whole distribution is."""
        if role not in self.roles or role in self.distributions:
            return ()
        return self.method.reads(self.params)

    def signs(self, weights: Tensor, labels: Tensor | None) -> Tensor:
        """Weights with the signs that a method which reads labels itself will give, known before the forward pass.

        Only for `labels="inside"`: all negative, or, with forget "labelled", negative where the label is, positive
        elsewhere and 0 where the label is 0. Any shape; `labels` NaN where there is none.
        """
        if getattr(self.params, "forget", "all") == "all":
            return -weights
        if labels is None:
            return weights
        return torch.where(labels < 0, -weights, torch.where(labels == 0, torch.zeros_like(weights), weights))

    def weigh(self, inputs: Inputs) -> Tensor:
        """Weights (S, T) without gradient, 0 where the mask is False."""
        with torch.no_grad():
            return cast(Tensor, prioritise(self.method, self.params, inputs, xp=TORCH))

    def losses(self, inputs: Inputs) -> Tensor:
        """Losses (S, T) with gradient, 0 where the mask is False."""
        return cast(Tensor, token_losses(self.method, self.params, inputs, xp=TORCH))

    def applied(self, part: Part, static: Tensor, inputs: Inputs) -> Tensor:
        """Static weights (S, T) after this method; `inputs.mask` holds what is trained on.

        A factor is decided among the tokens it multiplies, and leaves the others as they are. A method that reads
        labels itself gives the sign too, and the static weight its size. Another signed method gives all but the
        tokens that have a label, which keep theirs.
        """
        if part == "method" and self.method.labels == "inside":
            return static.abs() * self.weigh(inputs)
        if part == "method" and self.method.sign == "signed":
            found = static * self.weigh(inputs)
            return found if inputs.labels is None else spans.apply(found, inputs.labels, inputs.mask, xp=TORCH)
        chosen = inputs.mask & ((static < 0) if part == "forget" else (static > 0))
        factor = self.weigh(replace(inputs, mask=chosen)).abs()
        return torch.where(chosen, static * factor, static)

    def __str__(self) -> str:
        return described(self.method, self.params)


def described(method: Method, params: Params) -> str:
    """A method with its version and parameters, as a step names it: `dft v1 {source: student}`."""
    values = ", ".join(f"{name}: {value}" for name, value in params.model_dump().items() if value is not None)
    return f"{method.name} v{method.version}" + (f" {{{values}}}" if values else "")


def is_live(method: str, params: Mapping[str, Any] | None = None) -> bool:
    """Whether a method with these parameters is computed in the trainer: it reads the live student or whole
    distributions, gives losses, or reads the caller's labels or which tokens are the prompt."""
    chosen = get_method(method)
    roles = chosen.needs(chosen.parse(params))
    live = "student" in roles or "old" in roles
    own = chosen.labels == "inside" or chosen.reads_prompt
    return live or own or chosen.loss is not None or bool(chosen.distributions)
