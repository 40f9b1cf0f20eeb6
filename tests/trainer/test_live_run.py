"""Whole runs of live methods from a configuration file: the reference from a server, and from a copy beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from run_config import assert_close, metrics, writer
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.run import run

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def student(save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def write(tmp_path: Path, student: Path, text: str) -> Write:
    return writer(tmp_path, student, text)


@pytest.mark.parametrize(
    "method",
    [
        {"method": "npo", "params": {"forget": "labelled"}},
        {"method": "uniform", "student": "iw_sft", "student_params": {"unit": "token"}},
    ],
    ids=["the method", "a factor"],
)
def test_the_reference_of_a_live_method_is_the_servers_or_a_local_copy(
    write: Write, server: str, save_student: Any, reference_seed: int, tmp_path: Path, method: dict[str, Any]
) -> None:
    """Two steps by a server's log-probs are those by a copy of the same model."""
    reference = {"priorities.local": {"reference": str(save_student(tmp_path / "reference", reference_seed))}}
    # Adam would divide the rounding of a tiny gradient by itself.
    two = {"max_steps": 2, "packing": True, "optim": "sgd", "learning_rate": 0.1}
    run(load_config(write("asked", priorities={"url": server, **method}, training=two)))
    run(load_config(write("copied", priorities=method, training=two, **reference)))
    assert_close(tmp_path / "asked", tmp_path / "copied", atol=2e-6)
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("asked", "copied")]
    assert set(summaries[0]["fingerprints"]) == {"reference"}
    assert summaries[1]["fingerprints"] == {}
    assert [line["loss"] for line in metrics(tmp_path / "asked")] == pytest.approx(
        [line["loss"] for line in metrics(tmp_path / "copied")], rel=1e-4
    )


@pytest.mark.parametrize("method", ["prift_mass", "asft", "psft"])
def test_a_local_reference_does_without_a_server(write: Write, save_student: Any, tmp_path: Path, method: str) -> None:
    reference = {"priorities.local": {"reference": str(save_student(tmp_path / "reference", 3)), "refresh": 2}}
    run(load_config(write(priorities={"method": method}, training={"max_steps": 2}, **reference)))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["composition"][2].startswith(("live weight: ", "live loss: ")[method == "asft"] + method)
