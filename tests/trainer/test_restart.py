"""A scoring server killed in the middle of a training: waited for, and only if it comes back as the one it was."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from run_config import assert_close, metrics, writer
from tokenpriority import ConnectionFailed, FingerprintChanged
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.run import run

Write = Callable[..., Path]

# Its weights are 0, 1 and -1: a reference that scores other documents together may change the last bit of a log-prob.
PRIFT = {"method": "prift_mass", "params": {"tau": 0.2}, "depth": 1}
LONG = {"max_steps": 12, "gradient_accumulation_steps": 1}


class Server:
    """A server that can be killed and begun again at the same address."""

    def __init__(self, begin: Callable[..., tuple[subprocess.Popen[str], str]], folder: Path) -> None:
        self._begin, self._folder = begin, folder
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self, reference: Path) -> None:
        """Begin with this model, if none runs."""
        if self._process is None:
            port = int(self.url.rpartition(":")[2]) if self.url else 0
            self._process, self.url = self._begin(self._folder, {"reference": reference}, port)

    def kill(self) -> None:
        """End it at once, as the loss of its machine would."""
        if self._process is not None:
            with self._process:
                self._process.kill()
            self._process = None


@pytest.fixture(scope="module")
def scorer(begin: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(begin, tmp_path_factory.mktemp("scorer"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def references(save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [save_student(tmp_path_factory.mktemp("reference"), seed) for seed in (11, 12)]


@pytest.fixture
def write(tmp_path: Path, save_student: Callable[..., Path], text: str) -> Write:
    return writer(tmp_path, save_student(tmp_path / "student", attention_dropout=0.1), text)


@contextmanager
def after_a_step(folder: Path, happens: Callable[[], None]) -> Iterator[None]:
    """Lets something happen to a run in this folder once it has done a step."""

    def watch() -> None:
        end = time.monotonic() + 120
        while time.monotonic() < end and not ((folder / "metrics.jsonl").exists() and metrics(folder)):
            time.sleep(0.005)
        happens()

    thread = threading.Thread(target=watch)
    thread.start()
    yield
    thread.join()


@pytest.mark.slow
def test_a_restart_costs_waiting_and_never_a_weight(
    scorer: Server, references: list[Path], write: Write, tmp_path: Path
) -> None:
    scorer.start(references[0])
    priorities = {"url": scorer.url, **PRIFT}
    run(load_config(write("undisturbed", priorities=priorities, training=LONG)))
    outage = 0.0

    def restart() -> None:
        nonlocal outage
        since = time.monotonic()
        scorer.kill()
        scorer.start(references[0])
        outage = time.monotonic() - since

    with after_a_step(tmp_path / "disturbed", restart):
        run(load_config(write("disturbed", priorities=priorities, training=LONG)))
    assert_close(tmp_path / "disturbed", tmp_path / "undisturbed", atol=0)
    found, expected = metrics(tmp_path / "disturbed"), metrics(tmp_path / "undisturbed")
    assert [line["loss"] for line in found] == [line["loss"] for line in expected]
    assert json.loads((tmp_path / "disturbed" / "summary.json").read_text())["wait_seconds"] > 0.9 * outage > 0
    assert max(line["wait_seconds"] for line in found) > 0.9 * outage, "it was in the middle of the run"


@pytest.mark.slow
def test_a_server_that_comes_back_with_another_model_stops_the_run(
    scorer: Server, references: list[Path], write: Write, tmp_path: Path
) -> None:
    scorer.start(references[0])

    def replace() -> None:
        scorer.kill()
        scorer.start(references[1])

    config = load_config(write(priorities={"url": scorer.url, **PRIFT}, training=LONG))
    with (
        after_a_step(tmp_path / "run", replace),
        pytest.raises(FingerprintChanged, match=r"^model 'reference' had the fingerprint .* at the start .*, now .*$"),
    ):
        run(config)
    assert len(metrics(tmp_path / "run")) < LONG["max_steps"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["complete"] is False


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_run_when_patience_does(
    scorer: Server, references: list[Path], write: Write, tmp_path: Path
) -> None:
    scorer.start(references[1])
    ends: list[float] = []

    def kill() -> None:
        scorer.kill()
        ends.append(time.monotonic())

    config = load_config(write(priorities={"url": scorer.url, "patience": 3, **PRIFT}, training=LONG))
    said = f"^POST {scorer.url}/v1/priorities: no answer in [0-9]+ attempts "
    with after_a_step(tmp_path / "run", kill), pytest.raises(ConnectionFailed, match=said):
        run(config)
    assert time.monotonic() - ends[0] < 25, "a client that counts attempts takes longer"
