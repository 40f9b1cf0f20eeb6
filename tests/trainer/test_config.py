from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokenpriority.composition import Schedule
from tokenpriority_trainer.config import Config, load_config, training_arguments
from tokenpriority_trainer.errors import ConfigError

MINIMAL = """
[model]
path = "student"
[data]
train = "train.jsonl"
[training]
output_dir = "out"
"""


@pytest.fixture
def load(tmp_path: Path) -> Any:
    def read(text: str) -> Config:
        path = tmp_path / "config.toml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)

    return read


def test_a_minimal_file_is_plain_fine_tuning(load: Any) -> None:
    config = load(MINIMAL)
    assert (config.priorities.method, config.priorities.url, config.model.lora) == ("uniform", None, None)


def test_every_key_of_the_contract_is_read(load: Any) -> None:
    config = load(
        """
        [model]
        path = "student"
        dtype = "bfloat16"
        [model.lora]
        r = 8
        alpha = 16
        target_modules = ["q_proj"]
        [data]
        train = "train.parquet"
        eval = "owner/name:test"
        [priorities]
        url = "http://127.0.0.1:8000"
        api_key_env = "KEY"
        model = "reference"
        method = "prift_mass"
        params = {tau = 0.1}
        depth = 3
        student = "dft"
        negatives = "ascent"
        student_params = {source = "student"}
        forget = "wga"
        forget_params = {beta = 2.0}
        schedule = {shape = "cosine", start = 0.1, end = 1.0, sign = "both", over = "epoch"}
        clip = [-1.0, 2]
        denominator = "by_sign"
        [priorities.local]
        reference = "frozen"
        base = "base"
        refresh = 4
        [training]
        output_dir = "out"
        """
    )
    assert config.model.lora.target_modules == ["q_proj"]
    schedule = Schedule(shape="cosine", start=0.1, end=1.0, sign="both", over="epoch")
    assert (config.priorities.schedule, config.priorities.clip) == (schedule, (-1.0, 2.0))
    assert config.priorities.local.model_dump() == {"reference": "frozen", "base": "base", "refresh": 4}
    assert config.priorities.params == {"tau": 0.1}


def test_whole_numbers_do_for_fractions(load: Any) -> None:
    config = load(MINIMAL + "[priorities]\nschedule = {end = 2}\n[model.lora]\nalpha = 8")
    assert (config.priorities.schedule, config.model.lora.alpha) == (Schedule(end=2.0), 8.0)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (MINIMAL + "[extra]\n", "extra: Extra inputs are not permitted"),
        (MINIMAL.replace('path = "student"', 'path = "student"\ndevice = "cpu"'), "model.device: Extra inputs"),
        (MINIMAL.replace("[data]", "[dta]"), "data: Field required"),
        (
            MINIMAL + "[priorities]\ndepth = 0",
            "priorities.depth: must be 'auto' or a whole number of at least 1, got 0",
        ),
        (
            MINIMAL + '[priorities]\ndenominator = "sum"',
            "denominator: .*'all', 'kept', 'by_sign' or 'sequences'.*got 'sum'",
        ),
        (MINIMAL + "[priorities]\nramp = [0.0, 1.0]", "priorities.ramp: Extra inputs"),
        (MINIMAL + "[priorities]\nschedule = {start = 1.0}", "priorities.schedule: .*end: goes with shape"),
        (MINIMAL + "[priorities]\nschedule = {end = inf}", "schedule.end: Input should be a finite number, got inf"),
        (MINIMAL + "[priorities]\nschedule = {end = -1.0}", "schedule.end: .*greater than or equal to 0, got -1.0"),
        (MINIMAL + "[priorities]\nschedule = {end = 0}", "priorities.schedule: .*must not both be 0"),
        (MINIMAL + '[priorities]\nschedule = {end = "1"}', "schedule.end: Input should be a valid number, got '1'"),
        (MINIMAL + '[priorities]\nschedule = {end = 1, shape = "step"}', "schedule.shape: .*got 'step'"),
        (MINIMAL + "[priorities]\nclip = [0.0]", "priorities.clip.1: Field required"),
        (MINIMAL + "[priorities]\nclip = [0.5, 1]", r"priorities.clip: .*low <= 0 <= high.*got \[0.5, 1\]"),
        (MINIMAL + "[priorities]\nclip = [0, 0.0]", "priorities.clip: .*not both 0"),
        (
            MINIMAL + '[priorities]\ncalibration = "c.json"\nmethod = "forgetting"',
            "priorities: calibration gives method and params; leave out method",
        ),
        (
            MINIMAL + '[priorities]\ncalibration = "c.json"\nparams = {}',
            "priorities: calibration gives method and params; leave out params",
        ),
        (MINIMAL + "[priorities.local]\nrefresh = 0", "priorities.local.refresh: .*greater than or equal to 1, got 0"),
        (MINIMAL + "[priorities]\ndepth = 3.0", "priorities.depth: must be .*, got 3.0"),
        (MINIMAL + "[priorities]\ndepth = true", "priorities.depth: must be .*, got True"),
        (MINIMAL + '[priorities]\ndepth = "8"', "priorities.depth: must be .*, got '8'"),
        (MINIMAL + '[model.lora]\nalpha = "8"', "model.lora.alpha: Input should be a valid number, got '8'"),
        (MINIMAL + "=", "not valid TOML"),
    ],
)
def test_a_mistake_names_the_key(load: Any, text: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        load(text)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml: No such file or directory"):
        load_config(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("training", "what"),
    [
        (
            {"output_dir": "out", "learning_rat": 1e-4},
            "training.learning_rat: no such .*; did you mean learning_rate",
        ),
        ({"output_dir": "out", "qqqqq": 1}, "training.qqqqq: no such argument of SFTConfig$"),
        ({"learning_rate": 1e-4}, "training.output_dir: is required"),
        ({"output_dir": "out", "save_strategy": "sometimes"}, "training: .*sometimes"),
    ],
)
def test_training_arguments_are_checked_by_name_and_by_trl(training: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        training_arguments(training)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("packing", "false", "must be true or false, got str 'false'"),
        ("packing", 0, "must be true or false, got int 0"),
        ("eval_packing", "no", "must be true or false, got str 'no'"),
        ("per_device_train_batch_size", "8", "must be a whole number, got str '8'"),
        ("per_device_train_batch_size", True, "must be a whole number, got bool True"),
        ("max_length", 512.5, "must be a whole number, got float 512.5"),
        ("learning_rate", "2e-5", "must be a number, got str '2e-5'"),
        ("learning_rate", [2e-5], r"must be a number, got list \[2e-05\]"),
        ("save_steps", True, "must be a number, got bool True"),
    ],
)
def test_a_switch_or_number_of_another_type_is_refused(key: str, value: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"^training\.{key}: {what}$"):
        training_arguments({"output_dir": "out", key: value})


def test_what_trl_takes_in_several_forms_is_left_to_it(tmp_path: Path) -> None:
    given = {
        **{"learning_rate": 1, "save_steps": 0.25, "max_length": None, "include_num_input_tokens_seen": "all"},
        **{"optim": "sgd", "lr_scheduler_kwargs": {"num_cycles": 1}, "report_to": [], "optim_target_modules": ["a"]},
    }
    args = training_arguments({"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, **given})
    assert (args.learning_rate, args.save_steps, args.max_length, args.report_to) == (1, 0.25, None, [])


def test_defaults_of_ours_give_way_to_the_files(tmp_path: Path) -> None:
    args = training_arguments({"output_dir": str(tmp_path)})
    assert (args.report_to, args.bf16, args.remove_unused_columns) == ([], False, True)
    assert training_arguments({"output_dir": str(tmp_path), "bf16": True, "use_cpu": True}).bf16


def test_a_named_key_must_be_there(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOKENPRIORITY_API_KEY", raising=False)
    assert load(MINIMAL).priorities.api_key() is None
    named = load(MINIMAL + '[priorities]\napi_key_env = "TOKENPRIORITY_API_KEY"').priorities
    with pytest.raises(ConfigError, match="the environment variable TOKENPRIORITY_API_KEY is not set"):
        named.api_key()
    monkeypatch.setenv("TOKENPRIORITY_API_KEY", "secret")
    assert named.api_key() == "secret"


def test_configuration_and_command_load_no_heavy_library() -> None:
    code = (
        "import sys, tokenpriority_trainer.command, tokenpriority_trainer.config\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_public_names_are_what_the_package_says() -> None:
    import tokenpriority_trainer

    for name in tokenpriority_trainer.__all__:
        assert getattr(tokenpriority_trainer, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = tokenpriority_trainer.Nothing
