from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from tokenpriority_trainer.demo.results import COLUMNS, Results
from tokenpriority_trainer.demo.table import table
from tokenpriority_trainer.demo.toml import write_toml

CLEAN = next(column for column in COLUMNS if column.title == "clean NLL")
WAITED = next(column for column in COLUMNS if column.title == "waited s")


def test_several_seeds_are_a_mean_and_a_spread(results: Results) -> None:
    values = [row.measured.clean_nll for row in results.rows if row.name == "signed"]
    assert results.cell("signed", CLEAN) == f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}"


def test_one_seed_is_a_figure_without_spread(results: Results) -> None:
    only = replace(results, rows=[row for row in results.rows if row.seed == 0], seeds=1)
    assert only.cell("signed", CLEAN) == "3.500"


def test_what_was_not_measured_is_a_dash(results: Results) -> None:
    assert results.cell("base", WAITED) == "–"


def test_the_file_holds_every_figure(results: Results, tmp_path: Path) -> None:
    results.write(tmp_path / "results.json")
    document = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in document["rows"]] == [row.name for row in results.rows]
    for written, row in zip(document["rows"], results.rows, strict=True):
        assert written["clean_nll"] == row.measured.clean_nll
        assert written["wait_seconds"] == row.wait_seconds
    assert document["stages"] == {"one stage": 12.25}
    assert document["curves"]["signed"][1]["nll_neg"] == 2.0


def test_a_figure_that_is_not_finite_is_not_written(results: Results, tmp_path: Path) -> None:
    results.rows[1] = replace(results.rows[1], tokens_per_second=float("nan"))
    with pytest.raises(ValueError, match="uniform, seed 0: tokens_per_second is nan"):
        results.write(tmp_path / "results.json")
    assert not (tmp_path / "results.json").exists()


def test_the_table_shows_every_model_figure_and_note(results: Results) -> None:
    console = Console(file=StringIO(), width=200)
    console.print(table(results))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for column in COLUMNS:
        assert column.title in shown
        assert column.note in shown
        assert all(results.cell(name, column) in shown for name in results.names())
    assert "2 seeds" in shown


PLAIN = st.text(st.characters(exclude_characters="\x7f", exclude_categories=["Cs"]), max_size=20)
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(table=st.dictionaries(st.sampled_from(["k", "key_2", "k-3"]), VALUES))
def test_written_configuration_reads_back(table: dict[str, object], tmp_path: Path) -> None:
    write_toml(tmp_path / "x.toml", {"one.two": table, "three": {"path": Path("/a b/\"c'")}})
    document = tomllib.loads((tmp_path / "x.toml").read_text(encoding="utf-8"))
    assert document == {"one": {"two": table}, "three": {"path": "/a b/\"c'"}}
