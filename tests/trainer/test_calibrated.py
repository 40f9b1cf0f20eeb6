"""Runs from a calibration file, against a real server over a real socket: its threshold, its models, its copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from run_config import assert_close, metrics, writer
from tokenpriority import Calibration, Client
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.fetching import fetch_weights
from tokenpriority_trainer.run import run

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def student(save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def write(tmp_path: Path, student: Path, text: str) -> Write:
    return writer(tmp_path, student, text)


@pytest.fixture(scope="session")
def calibration(server: str, text: str) -> Calibration:
    with Client(server) as client:
        return client.calibrate(
            [text[start : start + 200] for start in range(0, 2000, 200)], method="token_cleaning", params={"keep": 0.4}
        )


def test_a_run_takes_method_threshold_and_models_of_the_file(
    write: Write, server: str, calibration: Calibration, tmp_path: Path
) -> None:
    file = tmp_path / "ranked.json"
    calibration.save(file)
    two = {"max_steps": 2, "save_steps": 2}
    kept = {"calibration": str(file), "store": str(tmp_path / "weights.db")}
    run(load_config(write("named", priorities={"url": server, **kept}, training=two)))
    said = {"url": server, "method": calibration.method, "params": calibration.params}
    run(load_config(write("said", priorities=said, training=two)))
    assert_close(tmp_path / "named", tmp_path / "said", atol=0)
    assert 0 < metrics(tmp_path / "named")[0]["kept_share"] < 1
    assert Calibration.load(tmp_path / "named" / "calibration.json") == calibration
    assert not (tmp_path / "said" / "calibration.json").exists()
    named, other = (json.loads((tmp_path / name / "summary.json").read_text("utf-8")) for name in ("named", "said"))
    assert (named["method"], named["params"]) == (calibration.method, calibration.params)
    assert named["fingerprints"] == calibration.fingerprints
    assert named["composition"][0] == f"{other['composition'][0]}, calibrated by {file}"

    # Where the file lies does not count: the run goes on with its copy beside the model.
    (tmp_path / "named" / "summary.json").unlink()
    copy = {**kept, "calibration": str(tmp_path / "named" / "calibration.json")}
    run(load_config(write("named", priorities={"url": server, **copy}, training=two)), resume=True)

    fetch_weights(load_config(write(priorities={"url": server, **kept}, training=two)))
    run(load_config(write("alone", priorities=kept, training=two)), offline=True)
    assert_close(tmp_path / "alone", tmp_path / "named", atol=0)
    replace(calibration, fingerprints={**calibration.fingerprints, "base": "another"}).save(file)
    with pytest.raises(ConfigError, match="model 'base' of fingerprint another, this run has model 'base' of"):
        run(load_config(write("other", priorities=kept, training=two)), offline=True)


@pytest.mark.parametrize(
    ("fingerprints", "what"),
    [
        ({"base": "another"}, "made with model 'base' of fingerprint another, this run has model 'base' of {base}"),
        ({"third": "one"}, "made with model 'third' of fingerprint one, this run has no model 'third'"),
    ],
)
def test_other_models_are_refused(
    write: Write, server: str, calibration: Calibration, tmp_path: Path, fingerprints: dict[str, str], what: str
) -> None:
    replace(calibration, fingerprints={**calibration.fingerprints, **fingerprints}).save(tmp_path / "c.json")
    config = load_config(write(priorities={"url": server, "calibration": str(tmp_path / "c.json")}))
    with pytest.raises(ConfigError, match=what.format(base=f"fingerprint {calibration.fingerprints['base']}")):
        run(config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("priorities", "what"),
    [
        ({}, "priorities.calibration: holds for the models of a server only; set priorities.url or priorities.s"),
        ({"url": "http://127.0.0.1:9"}, "priorities.calibration: .*c.json: No such file or directory"),
    ],
)
def test_a_calibration_without_server_or_file_is_refused(
    write: Write, tmp_path: Path, priorities: dict[str, Any], what: str
) -> None:
    config = load_config(write(priorities={**priorities, "calibration": str(tmp_path / "c.json")}))
    with pytest.raises(ConfigError, match=what):
        run(config)


def test_a_file_that_is_no_calibration_is_refused(write: Write, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"method": "token_cleaning"}', encoding="utf-8")
    config = load_config(write(priorities={"url": "http://127.0.0.1:9", "calibration": str(tmp_path / "c.json")}))
    with pytest.raises(ConfigError, match=r"priorities.calibration: .*c.json: not a calibration: "):
        run(config)
