"""A report is there however a real run ends, of all its processes, and never in its way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from html_page import Page
from launching import TWO, launch
from run_config import metrics
from signed_rows import counts, one_pass, weights
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.records import MetricsFile
from tokenpriority_trainer.reporting import reported, text_of
from tokenpriority_trainer.run import run
from tokenpriority_trainer.sample import Example


@pytest.fixture(scope="module")
def make(save_student: Callable[..., Path], text: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    folder = tmp_path_factory.mktemp("report")
    return one_pass(folder, save_student(folder / "student"), text)


def test_a_resumed_run_has_all_curves_and_says_what_it_counts(make: Callable[..., Path]) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    whole, part = make("whole", **saving).with_suffix(""), make("part", **saving).with_suffix("")
    run(load_config(whole.with_suffix(".toml")))
    # What an interruption at step 3 leaves behind.
    shutil.copytree(whole / "checkpoint-2", part / "checkpoint-2")
    shutil.copy(whole / "metrics.jsonl", part / "metrics.jsonl")
    run(load_config(part.with_suffix(".toml")), resume=True)
    page = Page((part / "report.html").read_text(encoding="utf-8"))
    assert "the weights of the steps before step 3 are not counted here" in page.by_id["in priorities"]
    assert "Resumed after steps[2]" in page.by_id["in run"]
    assert "at step 1, " in page.by_id["curve-loss"]
    assert "at step 3; " in page.by_id["curve-loss"]
    trained = int(page.by_id["histogram"].split(" weights")[0])
    assert 0 < trained < len(weights())


def test_tensorboard_gets_every_figure_of_every_step(make: Callable[..., Path]) -> None:
    config = make("board", report_to="tensorboard")
    folder = config.with_suffix("")
    run(load_config(config))
    (events,) = folder.rglob("events.out.tfevents.*")
    board = EventAccumulator(str(events)).Reload()
    shown = {(name, each.step): each.value for name in board.Tags()["scalars"] for each in board.Scalars(name)}
    lines = [line for line in metrics(folder) if "nll_pos" in line]
    assert len(lines) > 1
    for line in lines:
        for name in ("loss", "nll_pos", "nll_neg", "kept_share", "priority_mean", "wait_share"):
            assert shown[f"train/{name}", line["step"]] == pytest.approx(line[name], rel=1e-6), name


@pytest.mark.slow
def test_two_processes_report_the_weights_of_both(make: Callable[..., Path]) -> None:
    config = make("two", gradient_accumulation_steps=1)
    done = launch(*TWO, "-m", "tokenpriority_trainer", str(config))
    page = Page((config.with_suffix("") / "report.html").read_text(encoding="utf-8"))
    assert counts() in page.by_id["histogram"]
    assert "not written" not in done.stderr


class Stop(TrainerCallback):
    """Ends a training after its second step."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_a_stopped_run_has_a_report_of_what_there_is(
    make_trainer: Callable[..., Any], signed: list[dict[str, Any]], tokenizer: Any
) -> None:
    trainer = make_trainer(signed, max_steps=4, per_device_train_batch_size=4)
    folder = Path(trainer.args.output_dir)
    trainer.add_callback(MetricsFile(folder))
    trainer.add_callback(Stop())
    facts = {"method": "uniform", "composition": ["priority: column 'priorities'"]}
    totals = {"tokens": 7, "seconds": 2.0, "wait_seconds": 0.5}
    with pytest.raises(KeyboardInterrupt), reported(trainer, tokenizer, facts, lambda: totals):
        trainer.train()
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "Stopped before its end" in text
    assert "KeyboardInterrupt" in text
    assert "25 %" in text
    trained = sum(label != -100 for row in signed for label in row["labels"][1:])
    assert f"{trained:,} weights" in page.by_id["histogram"]


def test_a_report_that_cannot_be_written_is_one_warning(
    make_trainer: Callable[..., Any], signed: list[dict[str, Any]], tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(signed)
    (Path(trainer.args.output_dir) / "report.html").mkdir(parents=True)
    with reported(trainer, tokenizer, {}, dict):
        trainer.train()
    (record,) = [each for each in caplog.records if each.name.endswith("reporting")]
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("report.html was not written: IsADirectoryError: ")


def test_tokens_are_decoded_with_their_surroundings(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text[:200])["input_ids"]
    for at in range(len(ids)):
        shown = text_of(tokenizer, Example(1.0, None, 1, 0, tuple(ids), at))
        assert shown.before + shown.token + shown.after == text[:200]
        assert shown.token_id == ids[at]


def test_a_token_within_a_character_is_shown_as_broken(tokenizer: Any) -> None:
    ids = tokenizer("é")["input_ids"]
    assert len(ids) == 2
    shown = text_of(tokenizer, Example(1.0, -0.5, 1, 0, tuple(ids), 0))
    assert shown.token == "\ufffd"
