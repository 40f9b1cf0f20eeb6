"""`tokenpriority serve` with real vLLM engines: two models and an adapter in one server, and one of them killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tokenpriority import Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

VOCABULARY, LENGTH, IN_FLIGHT, EACH = 512, 1024, 64, 6
START_SECONDS = 400
ERROR_TYPES = {"unavailable", "engine_fault"}


@dataclass(frozen=True)
class Running:
    """The server, its address, and the models it serves in float64, by name."""

    process: subprocess.Popen[str]
    url: str
    exact: dict[str, Any]

    def cores(self) -> list[int]:
        """Its engine cores, in the order they were started."""
        below = psutil.Process(self.process.pid).children()
        cores = [each for each in below if each.is_running() and "EngineCore" in " ".join(each.cmdline())]
        return [each.pid for each in sorted(cores, key=psutil.Process.create_time)]

    def ready(self) -> bool:
        return httpx.get(f"{self.url}/readyz", timeout=10).status_code == 200

    def until(self, ready: bool, seconds: float) -> float:
        """Wait until /readyz says so; the seconds it took."""
        began = time.monotonic()
        while self.ready() is not ready:
            assert self.process.poll() is None, "the server has ended"
            assert time.monotonic() - began < seconds, f"/readyz was not {ready} within {seconds} s"
            time.sleep(0.2)
        return time.monotonic() - began

    def truth(self, name: str, ids: Any) -> Any:
        """[T] float64 logprobs, NaN first."""
        tokens = torch.tensor(np.asarray(ids, np.int64))[None]
        with torch.no_grad():
            logprobs = self.exact[name](tokens).logits[0, :-1].log_softmax(-1)
        return np.concatenate([[np.nan], logprobs.gather(1, tokens[0, 1:, None])[:, 0].numpy()])

    def check(self, name: str, sequences: Any, scores: Any) -> None:
        for ids, each in zip(sequences, scores, strict=True):
            np.testing.assert_allclose(each.logprobs, self.truth(name, ids), rtol=0, atol=1e-4)


def build(seed: int) -> Any:
    torch.manual_seed(seed)
    make: Any = LlamaForCausalLM  # untyped
    return make(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=LENGTH,
            initializer_range=0.1,
        )
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("server")
    exact = {}
    for seed, name in enumerate(("reference", "base")):
        build(seed).save_pretrained(folder / name)
        exact[name] = build(seed).double().eval()
    tuned: Any = get_peft_model(build(0), LoraConfig(r=4, target_modules=["q_proj", "o_proj", "down_proj"]))
    with torch.no_grad():
        for parameter_name, parameter in tuned.named_parameters():
            if "lora_B" in parameter_name:  # made as zeros, which would show nothing
                parameter.normal_(std=0.1)
    tuned.save_pretrained(folder / "tuned")
    exact["tuned"] = PeftModel.from_pretrained(build(0), str(folder / "tuned")).double().eval()
    (folder / "server.toml").write_text(
        f"""
        [models.reference]
        model = "{folder / "reference"}"
        engine = "vllm"
        threads = 1
        kv_cache_bytes = 268435456
        max_batch_tokens = 2048
        adapters = {{ tuned = "{folder / "tuned"}" }}
        [models.base]
        model = "{folder / "base"}"
        engine = "vllm"
        threads = 1
        kv_cache_bytes = 268435456
        """
    )
    with serving(folder) as (process, url):
        running = Running(process, url, exact)
        running.until(ready=True, seconds=START_SECONDS)
        yield running
        # The last test has ended it; a failing one may not have.
        process.terminate()


class serving:  # noqa: N801  # reads as the context it is
    """A server process on a free port; its output is drained."""

    def __init__(self, folder: Path) -> None:
        self._command = [
            sys.executable,
            "-u",
            "-c",
            "from tokenpriority.cli import main; main()",
            "serve",
            "--port",
            "0",
        ]
        self._command += ["--config", str(folder / "server.toml")]

    def __enter__(self) -> tuple[subprocess.Popen[str], str]:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        url = re.findall(r"http://\S+", self._process.stdout.readline())[0]
        self._reader = threading.Thread(target=self._process.stdout.read)
        self._reader.start()
        return self._process, url

    def __exit__(self, *_: object) -> None:
        try:
            self._process.wait(60)
        finally:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
            self._reader.join()
            assert self._process.stdout is not None
            self._process.stdout.close()


def sequences(count: int, length: int, seed: int) -> Any:
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, length)).astype(np.uint32)


def test_each_named_model_scores_as_itself(running: Running) -> None:
    ids = sequences(6, 200, seed=1)
    listed = {model["name"]: model for model in httpx.get(f"{running.url}/v1/models").json()["models"]}
    assert set(listed) == {"reference", "base", "tuned"}
    assert len({model["fingerprint"] for model in listed.values()}) == 3
    assert all("entropy_top20" in model["signals"] for model in listed.values())
    with Client(running.url) as client:
        for name in listed:
            running.check(name, ids, client.score(list(ids), model=name, signals=["entropy_top20"]))


def test_a_method_of_two_models(running: Running) -> None:
    ids = sequences(2, 100, seed=2)
    with Client(running.url) as client:
        params = {"base": "base", "keep": 0.5}
        scores = client.score(list(ids), model="tuned", method="token_cleaning", params=params)
    for row, each in zip(ids, scores, strict=True):
        excess = (running.truth("tuned", row) - running.truth("base", row))[1:]
        kept = each.priorities[1:] > 0
        assert excess[kept].min() >= excess[~kept].max() - 1e-4


def test_a_killed_engine_core_is_answered_for_and_comes_back(running: Running) -> None:
    ids = sequences(IN_FLIGHT * EACH, LENGTH, seed=3)
    answers: list[tuple[float, httpx.Response, Any]] = []

    def ask(rows: Any) -> None:
        body = {"sequences": [{"token_ids": row.tolist()} for row in rows]}
        response = httpx.post(f"{running.url}/v1/priorities", json=body, timeout=60)
        answers.append((time.monotonic(), response, rows))

    threads = [threading.Thread(target=ask, args=(rows,)) for rows in np.split(ids, IN_FLIGHT)]
    for thread in threads:
        thread.start()
    reference, _ = running.cores()
    most = ids.size * 3 // 4
    while httpx.get(f"{running.url}/v1/limits").json()["queued_tokens"] < most and not answers:
        time.sleep(0.01)
    killed = time.monotonic()
    os.kill(reference, signal.SIGKILL)
    for thread in threads:
        thread.join()

    assert len(answers) == IN_FLIGHT
    assert max(when for when, _, _ in answers) - killed < 10
    failed = [response for _, response, _ in answers if response.status_code != 200]
    assert len(failed) >= 8, "the engine had all but finished before it was killed"
    for response in failed:
        assert response.status_code == 503
        assert response.json()["error"]["type"] in ERROR_TYPES
    for _, response, rows in answers:
        for result in response.json().get("results", [])[:1]:
            if "error" in result:
                assert result["error"]["type"] in ERROR_TYPES
            else:
                got = np.array(result["logprobs"], np.float64)  # null becomes NaN
                np.testing.assert_allclose(got, running.truth("reference", rows[0]), rtol=0, atol=1e-4)

    # The other model goes on meanwhile, the adapter on the dead core does not.
    running.until(ready=False, seconds=5)
    with Client(running.url, retries=0) as client:
        running.check("base", ids[:2], client.score(list(ids[:2]), model="base"))
    body = {"model": "tuned", "sequences": [{"token_ids": [1, 2, 3]}]}
    refused = httpx.post(f"{running.url}/v1/priorities", json=body, timeout=10)
    assert refused.status_code == 503
    assert int(refused.headers["retry-after"]) >= 1

    running.until(ready=True, seconds=START_SECONDS)
    with Client(running.url) as client:
        # Some were scored before, some in the call that died, some never; all are right now.
        running.check("reference", ids[::EACH], client.score(list(ids[::EACH])))
        running.check("tuned", ids[:4], client.score(list(ids[:4]), model="tuned"))


def test_sigterm_leaves_no_process(running: Running) -> None:
    cores = running.cores()
    assert len(cores) == 2
    running.process.terminate()
    assert running.process.wait(60) == 0
    deadline = time.monotonic() + 15
    while any(Path(f"/proc/{core}").exists() for core in cores):
        assert time.monotonic() < deadline
        time.sleep(0.2)
