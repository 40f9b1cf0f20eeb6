"""The whole demo, small: a real server, three real trainings, over real sockets."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tokenpriority.cli.app import app
from tokenpriority_trainer.demo.run import run_demo
from tokenpriority_trainer.demo.scale import Scale

FIGURES = ("clean_nll", "noise_nll", "idiom_logprob", "idiom_probability")
OF_TRAININGS = ("kept_share", "wait_seconds", "tokens_per_second", "seconds")


@pytest.fixture
def same_threads() -> Iterator[None]:
    """The demo sets torch's threads for its own process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("same_threads")
def test_the_demo_runs_from_end_to_end(tiny: Scale, tmp_path: Path) -> None:
    results = run_demo(tiny, seeds=1, out=tmp_path, console=Console(file=StringIO()))
    document = json.loads((tmp_path / "results.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["base", "reference", "uniform", "positive", "signed"] == results.names()
    for name, row in rows.items():
        assert all(math.isfinite(row[key]) for key in FIGURES)
        for key in OF_TRAININGS:
            if name in ("base", "reference"):
                assert row[key] is None
            else:
                assert math.isfinite(row[key])
    # Trained on text and not on a few rows of it, a model is better on other text than knowing nothing is.
    assert rows["reference"]["clean_nll"] < rows["base"]["clean_nll"] < math.log(tiny.vocab_size)
    # What the recipes fix, whoever wins: uniform keeps all; the mask keeps less; labels only add to what is kept.
    assert rows["uniform"]["kept_share"] == 1
    assert 0 < rows["positive"]["kept_share"] <= rows["signed"]["kept_share"] < 1
    curves = document["curves"]
    assert all(line.get("nll_neg") is None for line in curves["positive"])
    assert any(line.get("nll_neg") is not None for line in curves["signed"])
    assert [line["step"] for line in curves["uniform"]][-1] == tiny.tuning_steps
    # One student, one batch: before the first update all three see the same, so the order of the data is shared.
    assert len({curves[name][0]["entropy"] for name in ("uniform", "positive", "signed")}) == 1
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "down idiom" in page


def test_a_wrong_number_of_seeds_is_refused() -> None:
    result = CliRunner().invoke(app, ["demo", "--seeds", "0"], env={"NO_COLOR": "1", "COLUMNS": "120"})
    assert result.exit_code == 2
    assert "--seeds" in result.output
