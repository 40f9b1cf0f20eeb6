"""What a formula may read of the tokens it weighs.

Knows names, shapes and what is absent. Knows no formula.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, Self

from tokenpriority.arrays import Array, Namespace
from tokenpriority.errors import EngineFault, InvalidParameter
from tokenpriority.evidence import Evidence

Role = Literal["reference", "base", "student", "old"]
"""Whose evidence: a frozen reference, a second frozen model, the live student, or the student as it was some steps
ago."""
Source = Literal["reference", "student"]

_WHERE = {
    "reference": "a scoring server, or a local frozen copy in the trainer",
    "base": "a second frozen model",
    "student": "the trainer",
    "old": "the trainer",
}


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a formula may read; arrays of one shape, aligned as in `evidence.py`.

    The shape is (T,), one sequence, or (S, T), all S sequences of a micro-batch, each a row, padded where the mask is
    False. Steps over a sequence run along the last axis, steps over a micro-batch over all axes. `mask` is boolean,
    True where a priority is wanted; it is False at index 0 of every row. Evidence is finite where the mask is True
    and may be anything elsewhere.
    """

    mask: Array
    reference: Evidence | None = None
    base: Evidence | None = None
    student: Evidence | None = None
    old: Evidence | None = None
    labels: Array | None = None
    """The caller's signed label of each token, NaN where there is none."""
    prompt: Array | None = None
    """Boolean: the tokens of the prompt, which the caller gave as such."""
    token_ids: Array | None = None
    """int64; padding may hold anything. Read by formulas over whole distributions and by draws that must repeat."""
    logits: Mapping[Role, Array] = field(default_factory=lambda: MappingProxyType({}))
    """Whole distributions, (..., T, V): row i predicts token i. Only the trainer has them; the student's carry
    gradient."""

    def evidence(self, role: Role) -> Evidence:
        """The evidence of a role. Raises InvalidParameter if there is none."""
        found: Evidence | None = getattr(self, role)
        if found is None:
            raise InvalidParameter(f"source {role!r} is not available here; it needs {_WHERE[role]}")
        return found

    def distribution(self, role: Role) -> Array:
        """The logits of a role, (..., T, V). Raises InvalidParameter if there are none."""
        if role not in self.logits:
            raise InvalidParameter(
                f"the whole distribution of {role!r} is not available here; it needs the trainer, with a local frozen "
                "copy of any model but the student"
            )
        return self.logits[role]

    def checked(self, roles: tuple[Role, ...], *, xp: Namespace) -> Self:
        """The same with 0 for evidence where the mask is False, so that sums need no care.

        Raises EngineFault if evidence of one of these roles is not finite where the mask is True.
        """
        filled: dict[str, Any] = {role: self._filled(role, xp) for role in roles}
        return replace(self, **filled)

    def _filled(self, role: Role, xp: Namespace) -> Evidence:
        filled = {}
        for name, values in self.evidence(role).present().items():
            if not bool(xp.all(xp.isfinite(values) | ~self.mask)):
                raise EngineFault(
                    f"{role} evidence is missing or broken: {name} is not finite where a priority is wanted"
                )
            filled[name] = xp.where(self.mask, values, xp.zeros_like(values))
        return Evidence(**filled)
