"""Fingerprints: one for the same files and settings in every process, another for anything that moves a number."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

SCRIPT = """
import sys
from tokenpriority_service.engines.checkpoint import load_tokenizer
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.identity import Identity
from tokenpriority_service.engines.vllm.internals import AsyncEngineArgs

if __name__ == "__main__":
    model = sys.argv[1]
    config = AsyncEngineArgs(model=model, dtype="float32", enforce_eager=True).create_engine_config()
    path = FastPath(dtype="float32", logits_bytes=1 << 28)
    identity = Identity(model, None, "float32", path, 1, {})
    identity.read()
    print(identity.base(config, load_tokenizer(model)).fingerprint)
"""


@pytest.fixture(scope="module")
def fingerprint(vllm: Any, llama: Any) -> Callable[..., str]:
    """Of a folder and settings, by the identity an engine would have there; no engine is started."""
    from tokenpriority_service.engines.checkpoint import load_tokenizer
    from tokenpriority_service.engines.vllm.fast_path import FastPath
    from tokenpriority_service.engines.vllm.identity import Identity
    from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs

    def compute(
        folder: Path,
        dtype: str = "float32",
        evidence: str = "full",
        tensor_parallel: int = 1,
        revision: str | None = None,
    ) -> str:
        path = FastPath(dtype=dtype, logits_bytes=1 << 28) if evidence == "full" else PromptLogprobs()
        identity = Identity(str(folder), revision, dtype, path, tensor_parallel, {})
        identity.read()
        return str(identity.base(llama._core.config, load_tokenizer(str(folder))).fingerprint)

    return compute


@pytest.fixture
def copy(vllm: Any, tmp_path: Path) -> Path:
    """The same model in another folder."""
    return Path(shutil.copytree(vllm.saved("llama"), tmp_path / "copy"))


def test_same_files_and_settings_in_another_process(vllm: Any, llama: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(vllm.saved("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == llama.info.fingerprint


def test_where_the_files_are_does_not_matter(fingerprint: Callable[..., str], llama: Any, copy: Path) -> None:
    assert fingerprint(copy) == llama.info.fingerprint


def test_settings_that_move_a_number(fingerprint: Callable[..., str], vllm: Any, llama: Any) -> None:
    folder = vllm.saved("llama")
    ways = [
        fingerprint(folder),
        fingerprint(folder, dtype="bfloat16"),
        fingerprint(folder, evidence="prompt_logprobs"),
        fingerprint(folder, tensor_parallel=2),
        fingerprint(folder, revision="v2"),
    ]
    assert ways[0] == llama.info.fingerprint
    assert len(set(ways)) == len(ways)


def test_one_weight(fingerprint: Callable[..., str], vllm: Any, llama: Any, copy: Path) -> None:
    model = vllm.load("llama", torch.float32)
    with torch.no_grad():
        model.lm_head.weight[3, 5] += 1e-3
    model.save_pretrained(copy)
    assert fingerprint(copy) != llama.info.fingerprint


def test_the_config(fingerprint: Callable[..., str], llama: Any, copy: Path) -> None:
    config = copy / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert fingerprint(copy) != llama.info.fingerprint


def test_the_tokenizer(fingerprint: Callable[..., str], llama: Any, copy: Path) -> None:
    found = [llama.info.fingerprint]
    for letters in ("abc", "acb"):
        vocabulary = {letter: n for n, letter in enumerate(letters)}
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocabulary, []))).save_pretrained(copy)
        found.append(fingerprint(copy))
    assert len(set(found)) == 3


def test_a_restart_does_not_take_other_weights_for_the_same(copy: Path) -> None:
    from tokenpriority_service.engines.vllm.fast_path import FastPath
    from tokenpriority_service.engines.vllm.identity import Identity

    identity = Identity(str(copy), None, "float32", FastPath(dtype="float32", logits_bytes=1 << 28), 1, {})
    identity.read()
    identity.read()
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ValueError, match=r"model: model.safetensors in .* has changed since it was loaded"):
        identity.read()
