"""The ways, opened and closed: our engines and server in this process, `vllm serve` and transformers in their own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import uvicorn

from scoring import memory, padded
from scoring.clients import Clients
from scoring.way import Way
from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import read
from tokenpriority_service.engines import Engine, Job, load_engine

MODEL = "scored"


@contextlib.contextmanager
def ways(path: Path, dtype: str, threads: int, *, quick: bool) -> Iterator[list[Way]]:
    """Every way on one model, ready; `quick` leaves out those that decide no target."""
    with contextlib.ExitStack() as stack:
        found = [
            *stack.enter_context(_ours(path, dtype, threads)),
            *stack.enter_context(_prompt_logprobs(path, dtype, threads)),
            stack.enter_context(_serve(path, dtype)),
        ]
        if not quick:
            found += [
                stack.enter_context(_torch(path, dtype, threads)),
                stack.enter_context(_transformers(path, dtype, threads)),
            ]
        yield found


@contextlib.contextmanager
def _ours(path: Path, dtype: str, threads: int) -> Iterator[list[Way]]:
    """Our vLLM engine, alone and behind HTTP; one engine core for both."""
    before = memory.children("VLLM::Worker")
    engine = load_engine("vllm", model=str(path), dtype=dtype, threads=threads)
    (worker,) = memory.children("VLLM::Worker") - before
    with service(engine) as url, Clients("tokenpriority", url, MODEL) as clients:
        yield [Way(Way.FAST, _scores(engine), worker), Way(Way.HTTP, clients.score)]
    asyncio.run(engine.close())


@contextlib.contextmanager
def _torch(path: Path, dtype: str, threads: int) -> Iterator[Way]:
    engine = load_engine("torch", model=str(path), dtype=dtype, threads=threads)
    yield Way(Way.TORCH, _scores(engine))
    asyncio.run(engine.close())


def _scores(engine: Engine) -> Callable[[list[list[int]]], None]:
    def score(batch: list[list[int]]) -> None:
        results = asyncio.run(engine.score([Job(np.array(ids, np.uint32)) for ids in batch]))
        for result in results:
            if isinstance(result, Exception):
                raise result

    return score


@contextlib.contextmanager
def service(engine: Engine) -> Iterator[str]:
    """Our server in a thread, with nothing stored: every sequence is scored."""
    stored = {"max_bytes": 0, "memory_bytes": 0}
    settings = read(options={"store": stored, "database": {"url": "sqlite://"}})
    server = uvicorn.Server(uvicorn.Config(create_app(settings, {MODEL: engine}), log_level="error", access_log=False))
    sock = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
    thread.start()
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    _wait_for(f"{url}/readyz")
    yield url
    server.should_exit = True
    thread.join()


@contextlib.contextmanager
def _prompt_logprobs(path: Path, dtype: str, threads: int) -> Iterator[list[Way]]:
    """vLLM itself, asked for prompt logprobs in its two forms; one engine core for both."""
    from tokenpriority_service.engines.vllm import internals
    from tokenpriority_service.engines.vllm.core import Core

    async def unchecked(_llm: Any) -> None:
        return None

    arguments = {
        "model": str(path),
        "dtype": dtype,
        "runner": "generate",
        "max_num_batched_tokens": 8192,
        "kv_cache_memory_bytes": 1 << 30,
        "enforce_eager": True,
        "disable_log_stats": True,
    }
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(threads)}
    before = memory.children("VLLM::Worker")
    core = Core(arguments, environment, unchecked, name="generate")
    core.start()
    (worker,) = memory.children("VLLM::Worker") - before
    numbers = itertools.count()
    flat = {"flat_logprobs": True, "detokenize": False, "output_kind": internals.RequestOutputKind.FINAL_ONLY}

    def scoring(form: dict[str, Any]) -> Callable[[list[list[int]]], None]:
        params = internals.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0, **form)

        async def one(llm: Any, ids: list[int]) -> None:
            async for output in llm.generate(internals.prompt(ids), params, f"g{next(numbers)}"):
                last = output
            assert len(last.prompt_logprobs) == len(ids)

        def score(batch: list[list[int]]) -> None:
            async def work(llm: Any) -> None:
                await asyncio.gather(*(one(llm, ids) for ids in batch))

            asyncio.run(core.call(work))

        return score

    yield [Way(Way.DICT, scoring({}), worker), Way(Way.FLAT, scoring(flat), worker)]
    core.stop()


@contextlib.contextmanager
def _serve(path: Path, dtype: str) -> Iterator[Way]:
    """vLLM's own server."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--dtype", dtype]
    command += ["--served-model-name", MODEL, "--port", str(port), "--host", "127.0.0.1", "--enforce-eager"]
    command += [
        "--max-num-batched-tokens",
        "8192",
        "--kv-cache-memory-bytes",
        str(1 << 30),
        "--uvicorn-log-level",
        "error",
    ]
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for(f"{url}/health", child)
            with Clients("vllm", url, MODEL) as clients:
                yield Way(Way.SERVE, clients.score)
        finally:
            child.terminate()


@contextlib.contextmanager
def _transformers(path: Path, dtype: str, threads: int) -> Iterator[Way]:
    """In a process of its own, as everyone has it: another's OpenMP threads in the same process would slow both."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, padded.load, (path, dtype, threads)) as process:
        yield Way(Way.PLAIN, lambda batch: process.submit(padded.score, batch).result())


def _wait_for(url: str, child: subprocess.Popen[bytes] | None = None) -> None:
    for _ in range(600):
        assert child is None or child.poll() is None, "the server ended while starting"
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.5)
    raise TimeoutError(url)
