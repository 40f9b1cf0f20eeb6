"""The registry of priority methods: one formula body each, run on numpy and on torch alike.

    method.py       what a method is; applying one
    scope.py        the ranking step
    uniform.py      uniform
    probability.py  prift_prob, dft
    prift_mass.py   prift_mass
    excess.py       token_cleaning, forgetting
    labels.py       spans

A new method is one function with its equation in the docstring, one parameter class and one entry in `METHODS`.
"""

from __future__ import annotations

from tokenpriority.errors import NotFound
from tokenpriority.methods.excess import FORGETTING, TOKEN_CLEANING
from tokenpriority.methods.labels import SPANS
from tokenpriority.methods.method import Inputs, Method, Params, Role, prioritise
from tokenpriority.methods.prift_mass import PRIFT_MASS
from tokenpriority.methods.probability import DFT, PRIFT_PROB
from tokenpriority.methods.uniform import UNIFORM
from tokenpriority.schema import MethodInfo, MethodList

__all__ = ["METHODS", "Inputs", "Method", "Params", "Role", "describe", "get_method", "prioritise"]

METHODS: dict[str, Method] = {
    method.name: method for method in (UNIFORM, PRIFT_PROB, PRIFT_MASS, TOKEN_CLEANING, FORGETTING, DFT, SPANS)
}
"""Every method by name."""


def get_method(name: str) -> Method:
    """The method of this name. Raises NotFound listing the known ones."""
    if name not in METHODS:
        raise NotFound(f"method.name: no method {name!r}; known methods: {', '.join(METHODS)}")
    return METHODS[name]


def describe() -> MethodList:
    """The registry as GET /v1/methods and `tokenpriority methods --json` print it."""
    return MethodList(
        methods=[
            MethodInfo(
                name=m.name,
                version=m.version,
                sign=m.sign,
                source="+".join(m.roles) or "none",
                scope=m.scope,
                denominator=m.denominator,
                negatives=m.negatives,
                summary=m.summary,
                equation=m.equation,
                citation=m.citation,
                verified=m.verified,
                params=m.params.model_json_schema(),
            )
            for m in METHODS.values()
        ]
    )
