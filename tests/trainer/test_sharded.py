"""Two processes, under DDP and under FSDP2: against TRL's own trainer in the same launch, and one process of ours."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

import cpu_shards
import sharded
import tokenpriority_trainer
from launching import TWO, launch
from live_truth import assert_same
from run_config import assert_close, metrics, parameters, writer
from tokenpriority_trainer.config import load_config, training_arguments
from tokenpriority_trainer.run import run

EXAMPLES = Path(tokenpriority_trainer.__file__).parents[1] / "examples"
Steps = dict[str, dict[str, Any]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(save_student: Callable[..., Path], text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two students and the configurations of runs that are gone on with."""
    made = tmp_path_factory.mktemp("sharded")
    save_student(made / "untied")
    save_student(made / "tied", tie_word_embeddings=True)
    write = writer(made, made / "untied", text)
    split = {
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 2,
        "use_cpu": False,
    }
    lora = {"model.lora": {"r": 2, "target_modules": ["q_proj", "down_proj"]}}
    for name in sharded.RUNS:
        form = "FULL_STATE_DICT" if name == "full" else "SHARDED_STATE_DICT"
        training = {**split, "fsdp": True, "fsdp_config": {"state_dict_type": form}}
        for each in (name, f"{name}-resumed"):
            write(each, **(lora if name == "adapters" else {}), training=training)
    return made


@pytest.fixture(scope="module")
def launched(folder: Path) -> dict[str, Steps]:
    """What every case came to in two processes, by kind, in a launch that also left the runs in the folder."""
    launch(*TWO, str(sharded.__file__), str(folder), environment=cpu_shards.ENVIRONMENT)
    return {kind: torch.load(folder / f"{kind}.pt") for kind in sharded.KINDS}


@pytest.fixture(params=sharded.KINDS)
def steps(request: pytest.FixtureRequest, launched: dict[str, Steps]) -> Steps:
    return launched[request.param]


@pytest.fixture(scope="module")
def alone(folder: Path) -> Callable[[str], dict[str, Any]]:
    """What a case comes to in this process."""
    return cache(lambda name: sharded.trained(sharded.CASES[name], folder))


def assert_logged(found: dict[str, Any], expected: dict[str, Any], *names: str) -> None:
    mine, theirs = found["log"], expected["log"]
    assert {name: mine[name] for name in names} == pytest.approx({name: theirs[name] for name in names}, rel=1e-4)


def test_weight_one_is_trls_own_step(steps: Steps) -> None:
    assert_same(steps["one"]["moved"], steps["TRL"]["moved"])
    assert_logged(steps["one"], steps["TRL"], "loss", "grad_norm", "num_tokens")


def test_weight_zero_under_kept_is_a_label_left_out(steps: Steps) -> None:
    assert_same(steps["zero on half"]["moved"], steps["TRL without half"]["moved"])
    assert_logged(steps["zero on half"], steps["TRL without half"], "loss", "grad_norm")


def test_minus_one_by_ascent_moves_the_other_way(steps: Steps) -> None:
    assert_same({name: -value for name, value in steps["minus one"]["moved"].items()}, steps["one"]["moved"])


@pytest.mark.parametrize(
    "name", ["signed by 1", "signed by 2", "signed by 4", "tied", "live kept", "reference", "together"]
)
def test_two_processes_take_the_step_of_one_however_the_batch_is_split(steps: Steps, alone: Any, name: str) -> None:
    whole = alone("signed by 1" if name.startswith("signed") else name)
    assert_same(steps[name]["moved"], whole["moved"])
    same = ("loss", "nll_pos", "nll_neg", "negative_share", "kept_share", "grad_norm", "num_tokens", "entropy")
    assert_logged(steps[name], whole, *same)


def test_a_step_left_out_changes_nothing(steps: Steps, alone: Any) -> None:
    """By the norm of gradients of which each process has a part under FSDP2."""
    assert all((value == 0).all() for value in steps["left out"]["moved"].values())
    assert steps["left out"]["log"]["guard_skipped"] == 1
    assert_logged(steps["left out"], alone("left out"), "grad_norm", "loss")


def test_a_remainder_without_any_weight_changes_nothing(steps: Steps, folder: Path) -> None:
    first = sharded.trained(sharded.CASES["remainder"], folder, max_steps=1)
    assert_same(steps["remainder"]["moved"], first["moved"])


def test_the_chunked_kernel_takes_the_step_of_trls_head_under_ddp_and_is_refused_under_fsdp2(
    launched: dict[str, Steps], alone: Any
) -> None:
    assert_same(launched["ddp"]["chunked"]["moved"], alone("signed by 1")["moved"])
    assert "FSDP, which shards the lm head needs TRL's head" in launched["fsdp2"]["chunked"]["refused"]


def test_parameters_are_sharded_under_fsdp2_alone(launched: dict[str, Steps]) -> None:
    for kind, steps in launched.items():
        assert {step["sharded"] for step in steps.values() if "sharded" in step} == {kind == "fsdp2"}


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("name", sharded.RUNS)
def test_a_resumed_run_ends_as_one_never_stopped(folder: Path, name: str) -> None:
    whole, part = folder / name, folder / f"{name}-resumed"
    assert_close(part, whole, atol=1e-6)
    assert json.loads((part / "summary.json").read_text(encoding="utf-8"))["resumed_at"] == [1]
    assert [line["loss"] for line in metrics(part)] == pytest.approx([line["loss"] for line in metrics(whole)[1:]])
    before, after = parameters(folder / "untied"), parameters(whole)
    trained = [key for key in after if name != "adapters" or "lora_B" in key]  # which begin at 0
    assert trained
    assert all(not torch.equal(before.get(key, torch.zeros_like(after[key])), after[key]) for key in trained)


def test_the_examples_are_known_to_accelerate_and_to_the_trainer() -> None:
    file = EXAMPLES / "fsdp2.yaml"
    settings = load_config_from_file(str(file))
    assert (settings.distributed_type, settings.num_processes, settings.use_cpu) == ("FSDP", 8, False)
    arguments = launch_command_parser().parse_args(["script.py"])
    assert settings.fsdp_config.keys() <= vars(arguments).keys()
    config = load_config(EXAMPLES / "fsdp2.toml")
    trained = training_arguments({**config.training, "bf16": False})  # which this machine may not have
    assert not (settings.fsdp_config["fsdp_activation_checkpointing"] and trained.gradient_checkpointing)
    assert settings.mixed_precision == "bf16"
    assert config.training["bf16"]


def test_accelerate_launches_the_example(folder: Path, text: str, tmp_path: Path) -> None:
    """As a user would, but for models, data, sizes, the number of processes, and CPUs in the place of GPUs."""
    settings = yaml.safe_load((EXAMPLES / "fsdp2.yaml").read_text(encoding="utf-8"))
    accelerated = tmp_path / "fsdp2.yaml"
    accelerated.write_text(yaml.safe_dump({**settings, "num_processes": 2}), encoding="utf-8")
    (tmp_path / "sitecustomize.py").write_text("import cpu_shards\n", encoding="utf-8")
    example = tomllib.loads((EXAMPLES / "fsdp2.toml").read_text(encoding="utf-8"))["training"]
    del example["bf16"]  # transformers wants a GPU for it; `mixed_precision` of the accelerate file says the same
    small = {"max_steps": 4, "max_length": 64, "optim": "sgd", "learning_rate": 0.1, "warmup_steps": 0, "save_steps": 2}
    write = writer(tmp_path, folder / "untied", text)

    def split(name: str, size: int, steps: int, **changes: Any) -> Path:
        split = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        return write(name, training={**example, **small, **split, **changes, "output_dir": str(tmp_path / name)})

    two = split("two", 1, 2, use_cpu=False)
    command = ["accelerate.commands.launch", "--config_file", str(accelerated), "-m", "tokenpriority_trainer", str(two)]
    launch(*command, path=(tmp_path,), environment=cpu_shards.ENVIRONMENT)
    run(load_config(split("one", 4, 1)))
    begun, one, both = (parameters(path) for path in (folder / "untied", tmp_path / "one", tmp_path / "two"))
    for name, value in begun.items():
        off, moved = both[name] - one[name], one[name] - value
        assert off.norm() < 0.05 * moved.norm(), (name, off.norm() / moved.norm())  # of bfloat16 against float32
    assert (tmp_path / "two" / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()
