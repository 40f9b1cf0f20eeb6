"""The choices of a weighting: defaults, what goes together, and the names of the steps."""

from __future__ import annotations

from typing import Any

import pytest

from tokenpriority.composition import ASCENT, Schedule
from tokenpriority.methods import METHODS
from tokenpriority_trainer import Weighting
from tokenpriority_trainer.errors import ConfigError

AUTHORS = Schedule(end=0.25 - 1e-5, over="epoch")
"""Forgetting's code."""


def test_defaults_are_the_methods_own() -> None:
    params = {"threshold": 0.0}
    found = Weighting.of("forgetting", params)
    assert (found.denominator, found.negatives, found.schedule, found.live) == ("by_sign", "ascent", AUTHORS, ())
    changed = Weighting.of(
        "forgetting", params, denominator="all", negatives="unlikelihood", schedule={"shape": "constant", "start": 1.0}
    )
    assert (changed.denominator, changed.negatives) == ("all", "unlikelihood")
    assert changed.schedule == Schedule(shape="constant", start=1.0)


@pytest.mark.parametrize(
    ("method", "given", "schedule"),
    [
        ("uniform", {}, None),
        ("uniform", {"negatives": "ascent"}, ASCENT),
        ("spans", {"negatives": "ascent", "schedule": Schedule(end=1.0)}, Schedule(end=1.0)),
        ("forgetting", {"negatives": "ascent"}, AUTHORS),
        ("forgetting", {"negatives": "unlikelihood"}, None),
        ("forgetting", {"schedule": Schedule(start=0.5, end=0.0)}, Schedule(start=0.5, end=0.0)),
        ("npo", {}, None),
        ("uniform", {"forget": "wga"}, None),
        ("uniform", {"forget": "wga", "negatives": "unlikelihood"}, None),
    ],
)
def test_a_schedule_belongs_to_its_rule_for_negatives(method: str, given: Any, schedule: Schedule | None) -> None:
    params = {"threshold": 0.0} if method == "forgetting" else {}
    assert Weighting.of(method, params, **given).schedule == schedule


def test_a_live_rule_for_negatives_brings_its_own_ascent() -> None:
    assert Weighting.of("spans", forget="satimp").negatives == "ascent"
    assert Weighting.of("spans", forget="satimp", negatives="unlikelihood").negatives == "unlikelihood"


@pytest.mark.parametrize(
    ("method", "given", "what"),
    [
        ("prift_mass", {"student": "uniform"}, "student: 'uniform' does not read the live student"),
        ("prift_mass", {"student": "gem"}, "student: 'gem' is a loss"),
        ("prift_mass", {"student": "wga"}, "student: 'wga' is signed, not a positive weight"),
        ("dft", {"student": "dft"}, "student: method 'dft' is computed in the forward pass already"),
        ("prift_mass", {"forget": "dft"}, "forget: 'dft' is not an unlearning method"),
        ("prift_mass", {"forget": "undial"}, "forget: 'undial' is not an unlearning method that gives weights"),
        ("npo", {"forget": "wga"}, "forget: method 'npo' is an unlearning method itself"),
        ("spans", {"forget": "wga", "forget_params": {"forget": "labelled"}}, "forget_params.forget: must be 'all'"),
        ("spans", {"student_params": {"alpha": 1.0}}, "student_params: goes with student, which is not set"),
        ("spans", {"clip": (0.5, 1.0)}, "clip: must be two finite numbers, low <= 0 <= high"),
        ("spans", {"clip": (0.0, float("inf"))}, "clip: must be two finite numbers"),
        ("spans", {"schedule": {"end": -1.0}}, "schedule.end: Input should be greater than or equal to 0, got -1.0"),
        ("cdpo", {"denominator": "by_sign"}, "denominator: 'by_sign' needs signs that are known before"),
    ],
)
def test_parts_that_cannot_be_are_refused(method: str, given: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        Weighting.of(method, **given)


def test_every_method_of_the_registry_has_a_weighting() -> None:
    required: dict[str, dict[str, Any]] = {
        "forgetting": {"threshold": 0.0},
        "rho1": {"keep": 0.5},
        "rft": {"tau": 1.0},
        "shad": {"boilerplate": 1.0},
        "bll_threshold": {"side": "top", "tau": 0.5},
    }
    for name, method in METHODS.items():
        found = Weighting.of(name, required.get(name))
        live = bool({"student", "old"} & set(method.roles)) or method.loss is not None
        inside = method.labels == "inside" or method.reads_prompt
        assert (found.method is not None) == (live or inside or bool(method.distributions)), name
        assert (found.denominator, found.negatives) == (method.denominator, method.negatives)
        assert found.schedule == method.schedule


def test_every_step_is_named_in_order() -> None:
    found = Weighting.of(
        "prift_mass",
        {"tau": 0.1},
        student="bll",
        student_params={"alpha": 2.0},
        forget="wga",
        schedule=Schedule(end=0.25),
        clip=(-1.0, 2.0),
    )
    assert found.steps("prift_mass v1 {tau: 0.1} from reference", spans=True) == [
        "priority: prift_mass v1 {tau: 0.1} from reference",
        "labels: spans laid over",
        "student factor: bll v1 {source: student, alpha: 2.0}",
        "forget factor: wga v1 {source: student, forget: all, retain: 1.0, beta: 5.0}",
        "schedule: linear 0 to 0.25 on negative",
        "clip: [-1, 2]",
        "negatives: ascent",
        "denominator: all",
    ]


def test_a_method_that_reads_labels_or_gives_losses_says_so() -> None:
    assert Weighting.of("undial").steps("uniform v1", spans=True) == [
        "priority: uniform v1",
        "live loss: undial v1 {forget: all, retain: 1.0, beta: 10.0}",
        "labels: read by undial",
        "negatives: the method's own loss",
        "denominator: all",
    ]
