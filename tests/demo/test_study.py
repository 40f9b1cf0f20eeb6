"""The study of all methods, at a miniature scale: its rows, its table, and that it goes on where it stopped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from comparison.conditions import Condition, Conditions
from comparison.findings import Finding, Findings, figure, table
from comparison.recipes import RECIPES, Recipe
from comparison.training import study
from tokenpriority.methods import METHODS
from tokenpriority_trainer.demo.scale import Scale

SHOWN = ("uniform", "forgetting", "rho1", "asft", "prift_mass tau=0.1 x dft", "npo")


@pytest.fixture(scope="module")
def conditions(tmp_path_factory: pytest.TempPathFactory, tiny: Scale) -> Conditions:
    return Conditions(tmp_path_factory.mktemp("study"), tiny)


@pytest.fixture(scope="module")
def condition(conditions: Conditions) -> Condition:
    return conditions.make(0.25, seed=1)


def test_recipes_name_methods_and_are_told_apart() -> None:
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES) >= 30
    for recipe in RECIPES:
        for name in (recipe.static, recipe.live):
            assert name is None or name in METHODS


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [r for r in RECIPES if r.name.startswith(SHOWN)], ids=lambda recipe: recipe.name)
def test_a_training_leaves_finite_figures(conditions: Conditions, condition: Condition, recipe: Recipe) -> None:
    found = study(conditions, condition, recipe)
    assert found.failure is None
    assert found.key == (0.25, 1, recipe.name)
    for figure_ in (found.clean_nll, found.noise_nll, found.steps_per_second):
        assert figure_ is not None
        assert 0 < figure_ < math.inf
    assert found.kept is not None
    assert 0 < found.kept <= 1


def test_findings_are_kept_and_shown(tmp_path: Path) -> None:
    path = tmp_path / "findings.jsonl"
    rows = [
        Finding(0.1, 0, "uniform", 4.0, 8.0, -10.0, 1.0, 20.0),
        Finding(0.1, 1, "uniform", 4.2, 8.0, -10.0, 1.0, 20.0),
        Finding(0.1, 0, "dft", 3.9, 9.0, -20.0, 1.0, 20.0),
        Finding(0.1, 0, "ga", failure="Diverged: the loss is nan"),
    ]
    findings = Findings(path)
    for row in rows:
        findings.add(row)
    again = Findings(path)
    assert again.rows == rows
    assert again.has((0.1, 1, "uniform"))
    assert not again.has((0.1, 1, "dft"))
    shown = table(rows)
    assert "| uniform | 4.100 ± 0.141 | 8.00 ± 0.00 | -10.0 | 1.00 | 20.0 |" in shown
    assert "| ga | Diverged: the loss is nan |" in shown
    assert figure(rows).count("<circle") == 1 + 2  # the legend's; ga has none
