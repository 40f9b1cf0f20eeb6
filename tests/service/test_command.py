"""`tokenpriority serve --model`: which options go with which engine, and what is said at start."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from tokenpriority_service import command
from tokenpriority_service.configuration.settings import ModelSettings, RemoteModel, Settings, TorchModel, VllmModel
from tokenpriority_service.configuration.settings_models import MODELS
from tokenpriority_service.engines import ENGINES, load_engine


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What the command would have served."""
    served: list[Settings] = []
    monkeypatch.setattr(command, "run", lambda settings, *, insecure: served.append(settings))
    return served


def invoke(*options: str) -> Result:
    app = typer.Typer()
    app.command()(command.serve)
    return CliRunner().invoke(app, options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--model o/n", TorchModel(model="o/n")),
        ("--model o/n --dtype bfloat16 --device cuda", TorchModel(model="o/n", dtype="bfloat16", device="cuda")),
        (
            "--model o/n --engine vllm --dtype bfloat16 --tensor-parallel 2 --evidence prompt_logprobs",
            VllmModel(model="o/n", dtype="bfloat16", tensor_parallel=2, evidence="prompt_logprobs"),
        ),
        ("--model o/n --engine vllm --max-model-len 4096", VllmModel(model="o/n", max_model_len=4096)),
        (
            "--model name --engine remote --url http://h:1 --url http://h:2 --api-key-env THEIR_KEY",
            RemoteModel(model="name", urls=["http://h:1", "http://h:2"], api_key_env="THEIR_KEY"),
        ),
    ],
)
def test_options_become_the_settings_of_one_model(
    started: list[Settings], monkeypatch: pytest.MonkeyPatch, options: str, expected: ModelSettings
) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret")
    if isinstance(expected, VllmModel):
        pytest.importorskip("vllm")
    done = invoke(*options.split())
    assert done.exit_code == 0, done.output
    assert [settings.models for settings in started] == [{"reference": expected}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--engine vllm --device cuda", "--device: not an option of --engine vllm, but of torch"),
        ("--tensor-parallel 2", "--tensor-parallel: not an option of --engine torch, but of vllm"),
        ("--engine torch --evidence full", "--evidence: not an option of --engine torch, but of vllm"),
        ("--engine fake --dtype float32", "--dtype: not an option of --engine fake, but of torch, vllm"),
        ("--engine vllm --url http://h", "--url: not an option of --engine vllm, but of remote"),
        ("--engine remote --url http://h --dtype float16", "--dtype: not an option of --engine remote"),
        ("--engine remote", "--url: is required"),
        ("--engine remote --url h:8000", "models.reference.urls.0: must be http://"),
        ("--engine remote --url http://h --api-key-env NOT_SET_AT_ALL", "variable NOT_SET_AT_ALL is not set"),
        ("--engine tpu", "--engine: must be one of torch, vllm, remote, fake, got 'tpu'"),
        ("--engine vllm --dtype int8", "models.reference.dtype: Input should be 'float32'"),
    ],
)
def test_an_option_of_another_engine_is_refused_by_name(started: list[Settings], options: str, words: str) -> None:
    done = invoke("--model", "owner/name", *options.split())
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert started == []


@pytest.mark.parametrize("option", ["--url", "--tensor-parallel", "--engine"])
def test_options_of_a_model_go_with_model_only(started: list[Settings], option: str) -> None:
    done = invoke(option, "2")
    assert (done.exit_code, started) == (2, [])
    assert f"{option}: goes with --model only" in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (TorchModel(model="m"), ["torch", "float32", "cpu"]),
        (VllmModel(model="m"), ["vllm", "float32", "evidence full"]),
        (
            VllmModel(model="m", tensor_parallel=2, memory_share=0.4, kv_cache_bytes=1 << 29, adapters={"tuned": "x"}),
            ["tensor parallel 2", "40% of the GPU memory", "KV cache 0.50 GiB", "adapters tuned"],
        ),
        (RemoteModel(model="m", urls=["http://h:1", "http://h:2"]), ["remote", "http://h:1", "http://h:2"]),
    ],
)
def test_the_summary_says_what_runs_a_model(settings: ModelSettings, words: list[str]) -> None:
    assert [word for word in words if word not in settings.summary] == []


def test_every_engine_has_settings_and_a_loader() -> None:
    assert list(ENGINES) == list(MODELS)


def test_an_engine_gets_its_own_settings_alone() -> None:
    with pytest.raises(TypeError, match="device"):
        load_engine("fake", model="x", device="cpu")
    with pytest.raises(TypeError, match="evidence"):
        load_engine("torch", model="x", evidence="full")


def test_the_key_of_a_remote_model_is_read_from_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("THEIR_KEY", raising=False)
    with pytest.raises(ValueError, match="api_key_env: the environment variable THEIR_KEY is not set"):
        load_engine("remote", model="x", urls=["http://h"], api_key_env="THEIR_KEY")


WITHOUT_VLLM = """
import sys
sys.modules["vllm"] = None  # as if it were not installed
{}
"""


def without_vllm(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    source = WITHOUT_VLLM.format(code)
    return subprocess.run([sys.executable, "-c", source, *map(str, arguments)], capture_output=True, text=True)


def test_vllm_that_is_not_installed_is_told_at_start(tmp_path: Path) -> None:
    code = "import typer; from tokenpriority_service.command import serve; a = typer.Typer(); a.command()(serve); a()"
    done = without_vllm(code, "--model", tmp_path, "--engine", "vllm")
    assert done.returncode == 2
    assert "models.reference.engine: 'vllm' needs vLLM: pip install 'tokenpriority[vllm]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_vllm_that_is_not_installed_is_a_value_error() -> None:
    code = "from tokenpriority_service.engines import load_engine\ntry: load_engine('vllm', model='x')\n"
    done = without_vllm(code + "except ValueError as error: print(error)")
    assert "engine: 'vllm' needs vLLM: pip install 'tokenpriority[vllm]'" in done.stdout, done.stderr
