"""The registry: what every method must say of itself, and what it refuses."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest

from tokenpriority.errors import InvalidParameter, NotFound
from tokenpriority.evidence import ALL_SIGNALS, Evidence
from tokenpriority.methods import METHODS, Inputs, Method, Params, describe, get_method, prioritise
from tokenpriority.methods.both import BOTH
from tokenpriority.methods.frozen import FROZEN
from tokenpriority.methods.student import STUDENT
from tokenpriority.methods.unlearning import UNLEARNING

ALL = (*FROZEN, *STUDENT, *BOTH, *UNLEARNING)
EACH = pytest.mark.parametrize("method", ALL, ids=lambda method: method.name)


def test_names_are_unique_and_in_one_style() -> None:
    assert len(METHODS) == len(ALL)
    assert all(re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) for name in METHODS)


def test_every_method_is_held_against_a_second_implementation() -> None:
    """The tables of cases in the files beside this one, which cannot be imported from here, name every method."""
    named = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        for table in ast.parse(path.read_text("utf-8")).body:
            if isinstance(table, ast.AnnAssign) and ast.unparse(table.target) in ("CASES", "WEIGHTS"):
                assert isinstance(table.value, ast.List)
                named |= {ast.literal_eval(case.elts[0]) for case in table.value.elts if isinstance(case, ast.Tuple)}
    assert named == set(METHODS)


@EACH
def test_it_says_where_it_is_from_and_how_it_was_checked(method: Method) -> None:
    assert method.verified in get_args(get_type_hints(Method)["verified"])
    assert method.citation
    if method.verified != "own":
        assert re.search(r"arXiv \d{4}\.\d{5}\b", method.citation), "the source has an arXiv id"
    assert method.equation
    assert method.equation.isascii()
    assert re.search(r"\bw|loss", method.equation), "the equation says what it gives"
    assert method.summary.endswith(".")
    assert len((method.body.__doc__ or "").strip().splitlines()) > 1 or method.name in ("uniform",)


@EACH
def test_it_is_pinned_in_every_step(method: Method) -> None:
    hints = get_type_hints(Method)
    for field in ("sign", "scope", "denominator", "negatives", "labels"):
        assert getattr(method, field) in get_args(hints[field])
    assert (method.formula is None) != (method.loss is None), "a priority or a loss, not both"
    assert method.version >= 1
    assert set(method.signals) <= set(ALL_SIGNALS)
    assert set(method.distributions) <= set(method.roles)
    assert (method.statistic is not None) == ("threshold" in method.params.model_fields)
    assert method.sign == "signed" or method.schedule is None, "a schedule scales negative priorities"


@pytest.mark.parametrize(
    ("methods", "family"), [(FROZEN, "frozen"), (STUDENT, "student"), (BOTH, "both")], ids=["frozen", "student", "both"]
)
def test_it_is_listed_with_its_family(methods: tuple[Method, ...], family: str) -> None:
    assert {method.name: method.family for method in methods} == {method.name: family for method in methods}


@EACH
def test_every_parameter_has_a_docstring(method: Method) -> None:
    documented = set().union(*(_documented(cls) for cls in method.params.__mro__ if issubclass(cls, Params)))
    assert set(method.params.model_fields) <= documented


def _documented(cls: type) -> set[str]:
    """Names of the fields that a class annotates with a string right below."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = set()
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            assert isinstance(field.target, ast.Name)
            assert str(below.value.value).endswith(".")
            found.add(field.target.id)
    return found


@EACH
def test_defaults_parse_or_the_error_names_what_must_be_given(method: Method) -> None:
    try:
        params = method.parse()
    except InvalidParameter as error:
        message = str(error)
    else:
        assert method.parse(params.model_dump()) == params
        assert set(method.needs(params)) <= {"reference", "base", "student", "old"}
        assert set(method.reads(params)) <= set(ALL_SIGNALS)
        return
    assert any(re.search(rf"\b{name}\b", message) for name in method.params.model_fields)


@EACH
def test_unknown_parameters_are_refused_by_name(method: Method) -> None:
    with pytest.raises(InvalidParameter, match=rf"method\.params\.nonesuch.*parameters of {method.name}"):
        method.parse({"nonesuch": 1})


def test_description_is_complete() -> None:
    described = describe().methods
    assert [info.name for info in described] == list(METHODS)
    for info in described:
        assert info.params["additionalProperties"] is False
        assert set(info.params["properties"]) == set(METHODS[info.name].params.model_fields)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"'nope'.*uniform.*spans"):
        get_method("nope")


def test_absent_signal_and_absent_role_are_errors() -> None:
    only_logprob = Inputs(np.array([False, True]), reference=Evidence(np.array([np.nan, -1.0])))
    mass = get_method("prift_mass")
    with pytest.raises(InvalidParameter, match="mass_above"):
        prioritise(mass, mass.parse(), only_logprob, xp=np)
    dft = get_method("dft")
    with pytest.raises(InvalidParameter, match=r"student.*trainer"):
        prioritise(dft, dft.parse(), only_logprob, xp=np)
    cleaning = get_method("token_cleaning")
    with pytest.raises(InvalidParameter, match=r"base.*second frozen model"):
        prioritise(cleaning, cleaning.parse(), only_logprob, xp=np)


@pytest.mark.parametrize(
    ("name", "params", "parts"),
    [
        ("prift_mass", {"tau": 1.5}, ["method.params.tau", "less than or equal to 1", "1.5"]),
        ("prift_mass", {"tau": float("nan")}, ["method.params.tau", "finite"]),
        ("prift_mass", {"tua": 0.5}, ["method.params.tua", "tau, ties, source"]),
        ("prift_mass", {"tau": "0.5"}, ["method.params.tau", "valid number", "'0.5'"]),
        ("prift_mass", {"tau": True}, ["method.params.tau", "valid number", "True"]),
        ("prift_mass", {"ties": "loose"}, ["method.params.ties", "'strict' or 'inclusive'", "loose"]),
        ("token_cleaning", {"keep": 0}, ["method.params.keep", "greater than 0", "0"]),
        ("token_cleaning", {"scope": "dataset"}, ["threshold", "calibrate"]),
        ("token_cleaning", {"threshold": 0.5}, ["threshold", "dataset"]),
        ("forgetting", {}, ["threshold", "calibrate"]),
        ("shad", {}, ["method.params.boilerplate", "required"]),
        ("shad", {"boilerplate": 0.0, "reasoning": 0.0}, ["method.params", "cannot both be 0"]),
        ("cdpo", {"base": "base"}, ["method.params.base", "parameters of cdpo: side, weigh_chosen, contrast"]),
        ("rft", {}, ["method.params.tau", "required"]),
        ("rft", {"tua": 1.0}, ["method.params.tua", "parameters of rft: tau"]),
        ("rft", {"tau": 0.0}, ["method.params.tau", "greater than or equal to", "0"]),
        ("wit", {"lambda_p": -1.0}, ["method.params.lambda_p", "greater than or equal to 0", "-1"]),
        ("uniform", {"x": 1}, ["method.params.x", "none"]),
    ],
)
def test_bad_parameters_name_field_value_and_limit(name: str, params: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(InvalidParameter) as caught:
        get_method(name).parse(params)
    for part in parts:
        assert part in str(caught.value)
