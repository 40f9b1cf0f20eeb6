"""The bar in a real pseudo-terminal, lines elsewhere, and the terminal as it was however training ends."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from run_config import writer
from tokenpriority_trainer.bar import followed

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
CODE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Rows = list[dict[str, Any]]


class Terminal:
    """A pseudo-terminal: what is written on `file` comes out as `text`."""

    def __init__(self) -> None:
        self._read, write = pty.openpty()
        fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.file: TextIO = os.fdopen(write, "w", encoding="utf-8")
        self._parts: list[bytes] = []
        # A terminal that nobody reads would stop its writer.
        self._reader = threading.Thread(target=self._drain)
        self._reader.start()

    @property
    def text(self) -> str:
        return b"".join(self._parts).decode("utf-8", "replace")

    @property
    def plain(self) -> str:
        """The text without control codes."""
        return CODE.sub("", self.text)

    def close(self) -> None:
        self.file.close()
        self._reader.join()
        os.close(self._read)

    def _drain(self) -> None:
        while True:
            try:
                part = os.read(self._read, 4096)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            self._parts.append(part)


@contextmanager
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def as_terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[TextIO], None]:
    """Makes a file standard error, of a terminal 120 columns wide."""

    def use(file: TextIO) -> None:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.setenv("COLUMNS", "120")

    return use


def said(entry: dict[str, Any]) -> list[str]:
    """The figures of a logged step as they must be shown."""
    return [
        f"loss {entry['loss']:.4g}",
        f"NLL+ {entry['nll_pos']:.4g}",
        f"NLL- {entry['nll_neg']:.4g}",
        f"wait {100 * entry['wait_share']:.2g} %",
        f"{entry['tokens_per_second']:,.0f} tokens/s",
    ]


def test_a_terminal_has_a_bar_with_the_runs_figures(
    make_trainer: Callable[..., Any], signed: Rows, as_terminal: Callable[[TextIO], None]
) -> None:
    trainer = make_trainer(signed, max_steps=3, disable_tqdm=False)
    with terminal() as seen:
        as_terminal(seen.file)
        with followed(trainer):
            trainer.train()
        names = [type(each) for each in trainer.callback_handler.callbacks]
        assert not {ProgressCallback, PrinterCallback} & set(names)
        print("after", file=seen.file)
    assert "training" in seen.plain
    assert "3/3" in seen.plain
    assert re.search(r"\d:\d\d:\d\d left \d:\d\d:\d\d", seen.plain)
    for part in said(trainer.state.log_history[2]):
        assert part in seen.plain
    assert seen.text.rindex(SHOW) > seen.text.rindex(HIDE)
    assert seen.plain.splitlines()[-1] == "after"


class Fail(TrainerCallback):
    """Ends a training after its second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise RuntimeError("the second step")


def test_an_error_gives_the_terminal_back(
    make_trainer: Callable[..., Any], signed: Rows, as_terminal: Callable[[TextIO], None]
) -> None:
    trainer = make_trainer(signed, max_steps=3, disable_tqdm=False)
    trainer.add_callback(Fail())
    with terminal() as seen:
        as_terminal(seen.file)
        standard = sys.stdout, sys.stderr
        with pytest.raises(RuntimeError, match="the second step"), followed(trainer):
            trainer.train()
        assert (sys.stdout, sys.stderr) == standard
    assert "1/3" in seen.plain
    assert seen.text.rindex(SHOW) > seen.text.rindex(HIDE)


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_elsewhere_there_is_a_line_per_logged_step(
    make_trainer: Callable[..., Any], signed: Rows, capsys: pytest.CaptureFixture[str], disable_tqdm: bool
) -> None:
    trainer = make_trainer(signed, max_steps=4, logging_steps=2, disable_tqdm=disable_tqdm)
    capsys.readouterr()
    with followed(trainer):
        trainer.train()
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if not line.startswith("[transformers]")]
    assert [line.split("  ")[0] for line in lines] == ["step 2/4", "step 4/4"]
    for line, entry in zip(lines, trainer.state.log_history, strict=False):
        assert line.split("  ")[1:6] == said(entry)
        assert re.fullmatch(r".*  elapsed \d:\d\d:\d\d  left \d:\d\d:\d\d", line)
    assert "\x1b" not in err


def test_a_bar_is_not_forced_on_a_terminal(
    make_trainer: Callable[..., Any], signed: Rows, as_terminal: Callable[[TextIO], None], monkeypatch: Any
) -> None:
    for changes, term in (({"disable_tqdm": True}, "xterm"), ({"disable_tqdm": False}, "dumb")):
        with terminal() as seen:
            as_terminal(seen.file)
            monkeypatch.setenv("TERM", term)
            trainer = make_trainer(signed, **changes)
            with followed(trainer):
                trainer.train()
        assert "step 1/1  loss " in seen.text
        assert "\x1b" not in seen.text


@pytest.mark.slow
def test_an_interrupt_gives_the_terminal_back_and_leaves_a_report(
    save_student: Callable[..., Path], text: str, command_line: list[str], tmp_path: Path
) -> None:
    config = writer(tmp_path, save_student(tmp_path / "student"), text)(
        training={"max_steps": 100_000, "save_strategy": "no", "disable_tqdm": False}
    )
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    with terminal() as seen:
        before = termios.tcgetattr(seen.file)
        with subprocess.Popen(
            [*command_line, "train", str(config)], stdout=subprocess.DEVNULL, stderr=seen.file, env=environment
        ) as process:
            try:
                while "NLL-" not in seen.plain and process.poll() is None:
                    time.sleep(0.1)
                process.send_signal(signal.SIGINT)
                assert process.wait(120) != 0, seen.plain
            finally:
                process.kill()
        assert termios.tcgetattr(seen.file) == before
    assert "/100000" in seen.plain
    assert seen.text.rindex(SHOW) > seen.text.rindex(HIDE)
    assert "KeyboardInterrupt" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
