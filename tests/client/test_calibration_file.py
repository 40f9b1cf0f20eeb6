"""A calibration written beside a run and read again, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenpriority import Calibration, Client, calibration
from tokenpriority.methods import METHODS, get_method

DATASET = [np.random.default_rng(n).integers(0, 500, n) for n in range(1, 20)]


@pytest.fixture
def saved(service: str, tmp_path: Path) -> Path:
    path = tmp_path / "saved.json"
    with Client(service, retries=0) as client:
        client.calibrate(DATASET, method="forgetting").save(path)
    return path


def test_a_calibration_survives_its_file(service: str, saved: Path) -> None:
    with Client(service, retries=0) as client:
        assert Calibration.load(saved) == client.calibrate(DATASET, method="forgetting")
    assert [file.name for file in saved.parent.iterdir()] == [saved.name]


def test_a_calibration_of_another_version_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "forgetting", replace(get_method("forgetting"), version=7))
    with pytest.raises(ValueError, match=r"saved\.json: .*version 1 of 'forgetting'.*has version 7: calibrate again"):
        Calibration.load(saved)
    rest = {name: method for name, method in METHODS.items() if name != "forgetting"}
    monkeypatch.setattr(calibration, "METHODS", rest)  # taken out and put back, it would be the last
    with pytest.raises(ValueError, match=r"'forgetting', which this package does not have"):
        Calibration.load(saved)


@pytest.mark.parametrize("change", [{"tokens": "many"}, {"surprise": 1}, {"params": []}, {"version": None}])
def test_a_calibration_with_a_wrong_field_is_refused(saved: Path, change: dict[str, Any]) -> None:
    saved.write_text(json.dumps({**json.loads(saved.read_text()), **change}))
    with pytest.raises(ValueError, match=r"saved\.json: not a calibration"):
        Calibration.load(saved)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"method": "x", "surprise": 1}'])
def test_a_file_that_is_no_calibration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.json: not a calibration"):
        Calibration.load(path)
