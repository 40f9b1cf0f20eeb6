"""Real `vllm serve` processes over a tiny random Llama.

Two, started together and shared by all tests of this folder: one generates, one pools with our plugin. The truth is
the model's float64 forward, as in the tests of the other engines.
"""

from __future__ import annotations

import asyncio
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from tokenpriority_service.engines import Job
from tokenpriority_service.engines.remote import RemoteEngine, watch

KEY = "secret"
VOCAB = 300
LIMIT = 128

_START_SECONDS = 200.0
_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROCESSING_METHOD": "fork",  # half the imports, half the time to start
    "VLLM_PLUGINS": "tokenpriority",
}
_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "architectures": ["LlamaForCausalLM"],
}


class VllmServer:
    """One `vllm serve` of the model, in a process group of its own."""

    def __init__(self, folder: Path, log: Path, *options: str, scoring: bool = False) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--served-model-name", "tiny", "--api-key", KEY, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--dtype", "float32", "--max-model-len", str(LIMIT), "--enforce-eager", *options]
        environment = os.environ | _ENVIRONMENT | ({"TOKENPRIORITY_SCORING": "1"} if scoring else {})
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> VllmServer:
        """Block until it serves."""
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with suppress(OSError, http.client.HTTPException):
                if self._health() == 200:
                    return self
            time.sleep(0.2)
        self.kill()
        raise RuntimeError(f"vllm serve did not start:\n{self._log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """SIGKILL to the whole group: front end and engine core."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _health(self) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status
        finally:
            connection.close()


class Kit:
    """What the tests of this folder share."""

    key, vocab_size, limit = KEY, VOCAB, LIMIT

    @staticmethod
    def jobs(*lengths: int, seed: int = 0) -> list[Job]:
        """Random sequences of these lengths; a front takes 64 for a probe."""
        rng = np.random.default_rng(seed)
        return [Job(rng.integers(0, VOCAB, length).astype(np.uint32)) for length in lengths]

    @staticmethod
    def score(engine: RemoteEngine, jobs: list[Job]) -> list[Any]:
        """The results of one call; the engine stays open."""
        return asyncio.run(engine.score(jobs))

    @staticmethod
    def until(condition: Callable[[], Any]) -> None:
        """Block until it holds."""
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, "it did not come to hold within 30 s"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama with a tokenizer of one token per byte."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("remote") / "tiny"
    AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_SHAPE)).save_pretrained(path)
    _tokenizer(sorted(pre_tokenizers.ByteLevel.alphabet())).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("remote") / "reversed"
    _tokenizer(sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=True)).save_pretrained(path)
    return path


def _tokenizer(alphabet: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.fixture(scope="session")
def exact(folder: Path) -> Any:
    """The model in float64."""
    load: Any = AutoModelForCausalLM.from_pretrained
    return load(folder, dtype=torch.float64).eval()


@pytest.fixture(scope="session")
def servers(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, VllmServer]]:
    """Both servers, starting."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    logs = tmp_path_factory.mktemp("logs")
    started = {
        "generating": VllmServer(folder, logs / "generating"),
        "pooling": VllmServer(folder, logs / "pooling", "--runner", "pooling", scoring=True),
    }
    yield started
    for server in started.values():
        server.kill()


@pytest.fixture(scope="session")
def generating(servers: dict[str, VllmServer]) -> VllmServer:
    """A plain `vllm serve`."""
    return servers["generating"].wait()


@pytest.fixture(scope="session")
def pooling(servers: dict[str, VllmServer]) -> VllmServer:
    """A `vllm serve --runner pooling` with our plugin."""
    return servers["pooling"].wait()


@pytest.fixture
def open_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., RemoteEngine]]:
    """Opens engines over URLs, servers or fronts, checked ten times a second; all are closed in the end."""
    monkeypatch.setattr(watch, "HEALTH_SECONDS", 0.1)
    monkeypatch.setattr(watch, "FIRST_PAUSE", 0.1)
    monkeypatch.setattr(watch, "LONGEST_PAUSE", 0.2)
    engines: list[RemoteEngine] = []

    def start(*places: Any, **settings: Any) -> RemoteEngine:
        urls = [place if isinstance(place, str) else place.url for place in places]
        engines.append(RemoteEngine("tiny", urls=urls, **{"api_key": KEY, "timeout": 30.0, **settings}))
        return engines[-1]

    yield start
    for engine in engines:
        asyncio.run(engine.close())


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
