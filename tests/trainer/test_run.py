"""Whole runs from a configuration file, against a real server over a real socket, and what is refused early."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import AutoTokenizer

import leaving
from launching import TWO, launch
from run_config import assert_close, metrics, parameters, writer
from tokenpriority.errors import InvalidParameter, NotFound, TokenPriorityError
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.run import run

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def student(save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"))


@pytest.fixture
def write(tmp_path: Path, student: Path, text: str) -> Write:
    return writer(tmp_path, student, text)


@pytest.mark.slow
def test_the_command_trains_from_a_file(
    write: Write, server: str, command_line: list[str], student: Path, tmp_path: Path
) -> None:
    config = write(
        priorities={"url": server, "method": "prift_mass", "params": {"tau": 0.2}, "depth": 3},
        data={"eval": str(tmp_path / "train.jsonl")},
        training={"packing": True, "eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": False},
    )
    done = subprocess.run([*command_line, "train", str(config)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "4/4" in done.stderr  # the progress bar
    out = tmp_path / "run"
    lines = metrics(out)
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4]
    wanted = {"nll_pos", "nll_neg", "negative_share", "kept_share", "priority_mean", "wait_seconds"}
    wanted |= {"tokens_per_second", "grad_norm", "learning_rate"}
    assert all(wanted <= set(line) for line in steps)
    assert all(0 < line["negative_share"] < 1 for line in steps)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert summary["complete"] is True
    assert (summary["steps"], summary["method"], summary["params"]) == (4, "prift_mass", {"tau": 0.2})
    assert summary["tokens"] == steps[-1]["num_tokens"] > 0
    assert summary["wait_seconds"] == pytest.approx(sum(line["wait_seconds"] for line in steps), rel=1e-4)
    assert summary["fingerprints"] == {"reference": summary["fingerprint"]}
    assert summary["kernel"] == "chunked"
    assert summary["composition"] == [
        "priority: prift_mass v1 {tau: 0.2, ties: strict, source: reference} from reference",
        "labels: spans laid over",
        "negatives: unlikelihood",
        "denominator: all",
    ]
    before, after = parameters(student), parameters(out)
    assert any(not torch.equal(before[name], value) for name, value in after.items())
    assert AutoTokenizer.from_pretrained(out)("import json")["input_ids"]


def answered_tokens(server: str) -> float:
    """Tokens of all sequences the server has answered, from its store or not."""
    lines = httpx.get(f"{server}/metrics", trust_env=False).raise_for_status().text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("tokenpriority_tokens_total{"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "priorities",
    [
        {"method": "prift_prob", "denominator": "by_sign"},
        {"method": "sstoken_excess", "params": {"keep": 0.5}, "denominator": "kept"},
    ],
    ids=["counts known beforehand", "counts of the forward passes"],
)
def test_two_processes_take_the_step_of_one(
    write: Write, server: str, tmp_path: Path, priorities: dict[str, Any]
) -> None:
    """Two epochs of the same global batches, their documents of unlike length and weight, split over two processes;
    together these ask about every document once an epoch."""
    priorities = {"url": server, **priorities}
    sgd = {"max_steps": 6, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    asked = [answered_tokens(server)]
    run(load_config(write("one", priorities=priorities, training=sgd)))
    asked.append(answered_tokens(server))
    two = write("two", priorities=priorities, training={**sgd, "gradient_accumulation_steps": 1})
    launch(*TWO, str(leaving.__file__), str(two))
    asked.append(answered_tokens(server))
    assert_close(tmp_path / "two", tmp_path / "one", atol=1e-5)
    one, both = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    same = ("step", "loss", "nll_pos", "nll_neg", "negative_share", "kept_share", "num_tokens", "grad_norm")
    for alone, shared in zip(one, both, strict=True):
        assert {k: shared[k] for k in same} == pytest.approx({k: alone[k] for k in same}, rel=1e-4)
    by_one, by_two = asked[1] - asked[0], asked[2] - asked[1]
    preflight = by_two - by_one  # which each process makes
    assert 0 < preflight < by_one / 2
    assert by_one - preflight == both[-1]["num_tokens"]


def test_resume_goes_on_from_the_last_checkpoint(write: Write, server: str, tmp_path: Path) -> None:
    priorities = {"url": server, "method": "token_cleaning"}
    saving = {"save_strategy": "steps", "save_steps": 2}
    run(load_config(write("whole", priorities=priorities, training=saving)))
    whole, part = tmp_path / "whole", tmp_path / "part"
    # What an interruption at step 4 leaves behind: a checkpoint of step 2, lines up to step 3 and a part of one.
    shutil.copytree(whole / "checkpoint-2", part / "checkpoint-2")
    lines = (whole / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    left = [*lines[:2], lines[2].replace('"loss"', '"lost"'), lines[3][:20]]
    (part / "metrics.jsonl").write_text("\n".join(left), encoding="utf-8")
    config = write("part", priorities=priorities, training=saving)
    run(load_config(config), resume=True)
    assert_close(part, whole, atol=0)
    assert [line["step"] for line in metrics(part)] == [1, 2, 3, 4]
    assert [line["loss"] for line in metrics(part)] == [line["loss"] for line in metrics(whole)]
    summary = json.loads((part / "summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 4
    assert set(summary["fingerprints"]) == {"reference", "base"}


@pytest.mark.parametrize("method", ["uniform", "dft", "spans"])
def test_methods_that_need_no_server_run_without_one(write: Write, tmp_path: Path, method: str) -> None:
    run(load_config(write(priorities={"method": method}, training={"max_steps": 1})))
    assert metrics(tmp_path / "run")[0]["nll_neg"] > 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["fingerprint"] is None


def test_a_ready_column_needs_no_server(write: Write, tmp_path: Path) -> None:
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7], "priorities": [0, 1.0, -0.5]}] * 8
    file = tmp_path / "ready.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    run(load_config(write(data={"train": str(file)}, training={"max_steps": 1})))
    assert metrics(tmp_path / "run")[0]["negative_share"] == pytest.approx(1 / 3)


def test_adapters_are_trained_and_saved(write: Write, tmp_path: Path) -> None:
    lora = {"model.lora": {"r": 2, "alpha": 4, "target_modules": ["q_proj"]}}
    run(load_config(write(training={"max_steps": 1}, **lora)))
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


URL: dict[str, Any] = {"url": "SERVER"}


@pytest.mark.parametrize(
    ("sections", "error", "what"),
    [
        ({"priorities": {"url": "http://127.0.0.1:9"}}, ConfigError, "no server at http://127.0.0.1:9 answers"),
        ({"priorities": {"url": "127.0.0.1:9"}}, ConfigError, "priorities.url: must start with http"),
        ({"priorities": {**URL, "model": "nobody"}}, ConfigError, "no model 'nobody'; it has reference, base"),
        ({"priorities": {**URL, "method": "token_cleaning", "params": {"base": "x"}}}, ConfigError, "no model 'x'"),
        ({"priorities": {**URL, "method": "prift"}}, NotFound, "no method 'prift'; known methods: uniform"),
        ({"priorities": {**URL, "method": "prift_mass", "params": {"tau": 2}}}, InvalidParameter, "tau.*got 2"),
        (
            {"priorities": {"method": "prift_mass"}},
            ConfigError,
            "'prift_mass' reads reference: it needs",
        ),
        (
            {"priorities": {"url": "http://127.0.0.1:9", "tokenizers": "project", "method": "npo"}},
            ConfigError,
            "priorities.tokenizers: 'project' does not go with method 'npo'",
        ),
        (
            {"priorities": {"url": "http://127.0.0.1:9", "tokenizers": "project", "student": "iw_sft"}},
            ConfigError,
            "priorities.tokenizers: 'project' does not go with student 'iw_sft'",
        ),
        ({"priorities": {**URL, "student": "uniform"}}, ConfigError, "does not read the live student"),
        ({"priorities": URL, "training": {"max_length": 512}}, ConfigError, "takes at most 256 tokens, got 512"),
        ({"model": {"path": "nowhere"}}, ConfigError, "model.path: no tokenizer at 'nowhere'"),
        ({"data": {"train": "nothing.jsonl"}}, ConfigError, "data.train: no such file: nothing.jsonl"),
        ({"training": {"lr": 1}}, ConfigError, "training.lr: no such argument"),
    ],
)
def test_what_cannot_run_is_refused_in_one_line(
    write: Write, request: pytest.FixtureRequest, sections: dict[str, Any], error: type[TokenPriorityError], what: str
) -> None:
    if sections.get("priorities", {}).get("url") == "SERVER":
        sections = {**sections, "priorities": {**sections["priorities"], "url": request.getfixturevalue("server")}}
    with pytest.raises(error, match=what) as refused:
        run(load_config(write(**sections)))
    assert "\n" not in str(refused.value)


def test_a_student_of_another_family_is_refused(write: Write, server: str, tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["other words make other tokens " * 9], vocab_size=300, show_progress=False)
    other = type(tokenizer)(tokenizer_object=bpe._tokenizer, eos_token="e", pad_token="e")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match="'reference' tokenises a probe text into other tokens"):
        run(load_config(write(model={"path": str(tmp_path / "other")}, priorities={"url": server})))
    other.add_tokens([f"<{number}>" for number in range(200)])
    other.save_pretrained(tmp_path / "larger")
    with pytest.raises(ConfigError, match=r"tokenizer has \d+ tokens, the server's model 'reference' only 400"):
        run(load_config(write(model={"path": str(tmp_path / "larger")}, priorities={"url": server})))


def test_resume_without_a_checkpoint_begins(write: Write, tmp_path: Path, capsys: Any) -> None:
    run(load_config(write(training={"max_steps": 1})), resume=True)
    assert f"--resume: {tmp_path / 'run'} holds no whole checkpoint: training begins\n" in capsys.readouterr().err
    assert [line["step"] for line in metrics(tmp_path / "run")] == [1]


def test_the_command_says_one_line_and_exits_with_one(write: Write, command_line: list[str]) -> None:
    config = write(priorities={"depth": 0})
    done = subprocess.run([*command_line, "train", str(config)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ConfigError: {config}: priorities.depth: ")
