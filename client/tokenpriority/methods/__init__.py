"""The registry of priority methods: one formula body each, run on numpy and on torch alike.

    inputs.py     what a formula may read
    method.py     what a method is; applying one
    scope.py      counting, means and ranking over a sequence or a micro-batch
    numerics.py   what the array API leaves out
    frozen/       methods of frozen models
    student/      methods of the live student
    both/         methods of the student and a frozen model
    unlearning/   methods that push tokens down

A new method is one function with its equation in the docstring, one parameter class and one entry in its folder's list.
"""

from __future__ import annotations

from tokenpriority.errors import NotFound
from tokenpriority.methods.both import BOTH
from tokenpriority.methods.frozen import FROZEN
from tokenpriority.methods.inputs import Inputs, Role, Source
from tokenpriority.methods.method import Denominator, Method, Negatives, Params, prioritise, token_losses
from tokenpriority.methods.student import STUDENT
from tokenpriority.methods.unlearning import UNLEARNING
from tokenpriority.schema import MethodInfo, MethodList

__all__ = [
    "METHODS",
    "Denominator",
    "Inputs",
    "Method",
    "Negatives",
    "Params",
    "Role",
    "Source",
    "describe",
    "get_method",
    "prioritise",
    "token_losses",
]

METHODS: dict[str, Method] = {method.name: method for method in (*FROZEN, *STUDENT, *BOTH, *UNLEARNING)}
"""Every method by name."""


def get_method(name: str) -> Method:
    """The method of this name. Raises NotFound listing the known ones."""
    if name not in METHODS:
        raise NotFound(f"method.name: no method {name!r}; known methods: {', '.join(METHODS)}")
    return METHODS[name]


def describe() -> MethodList:
    """The registry as GET /v1/methods and `tokenpriority methods --json` print it."""
    return MethodList(methods=[_info(method) for method in METHODS.values()])


def _info(method: Method) -> MethodInfo:
    return MethodInfo(
        name=method.name,
        version=method.version,
        sign=method.sign,
        family=method.family,
        gives="priority" if method.formula is not None else "loss",
        source="+".join(method.roles) or "none",
        signals=list(method.signals),
        distributions=list(method.distributions),
        scope=method.scope,
        denominator=method.denominator,
        negatives=method.negatives,
        schedule=None if method.schedule is None else method.schedule.model_dump(),
        labels=method.labels,
        calibrated=method.statistic is not None,
        summary=method.summary,
        equation=method.equation,
        citation=method.citation,
        verified=method.verified,
        params=method.params.model_json_schema(),
    )
