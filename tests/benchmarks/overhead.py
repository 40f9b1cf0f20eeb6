"""What HTTP costs: one request through a real server against the engine called alone.

    python tests/benchmarks/overhead.py [--quick]

64 sequences of 1024 tokens, under the fake engine and a small random torch model, in JSON and in msgpack. The server is
a process of its own on a loopback socket. In each round every variant runs once, in turn, with fresh token ids, so that
noise falls on all alike. `request` is what a client waits: encoding, the round trip, and decoding into numpy arrays.
`overhead` is the part of it that the engine was not at work on these sequences, by the server's own clock (request
minus usage.engine_ms); `hit` repeats the request, answered from the store. Medians, in milliseconds.

Knows nothing of whether the numbers are right; tests/service does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tokenpriority import schema, wire
from tokenpriority_service.engines import load_engine
from tokenpriority_service.engines.engine import Engine, Job

SERVE = (
    "import typer; from tokenpriority_service.command import serve; app = typer.Typer(); app.command()(serve); app()"
)
SEQUENCES, LENGTH, VOCABULARY = 64, 1024, 2048
FORMATS = {"json": wire.JSON, "msgpack": wire.MSGPACK}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    rounds = 3 if parser.parse_args().quick else 15
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        models: dict[str, dict[str, Any]] = {
            "fake": {"model": "fake"},
            "torch": {"model": str(Path(folder) / "model"), "threads": 1},
        }
        with server(Path(folder), models) as client:
            engines = {kind: load_engine(kind, **settings) for kind, settings in models.items()}
            times = asyncio.run(measure(client, engines, rounds))
    report(times, rounds)


def save_model(folder: Path) -> None:
    """A small random Llama."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    model: Any = LlamaForCausalLM  # untyped
    model(config).save_pretrained(folder)


@contextlib.contextmanager
def server(folder: Path, models: dict[str, dict[str, Any]]) -> Iterator[httpx.Client]:
    """A ready server in a process of its own, with one model per engine, named after it; its evidence ends with it."""
    config = folder / "server.toml"
    lines = ["[server]", "port = 0", "[database]", 'url = "sqlite://"']  # another run's evidence would be found
    for kind, settings in models.items():
        lines += [f"[models.{kind}]", f'engine = "{kind}"', *(f"{k} = {json.dumps(v)}" for k, v in settings.items())]
    config.write_text("\n".join(lines))
    command = [sys.executable, "-u", "-c", SERVE, "--config", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
        assert child.stdout is not None
        url = re.findall(r"http://\S+", child.stdout.readline())[0]
        try:
            with httpx.Client(base_url=url, timeout=600) as client:
                while client.get("/readyz").status_code != 200:
                    time.sleep(0.1)
                yield client
        finally:
            child.terminate()


async def measure(client: httpx.Client, engines: dict[str, Engine], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of every variant in every round; a small round, not counted, goes first."""
    times: dict[str, list[float]] = {}
    rng = np.random.default_rng(0)
    for number in range(rounds + 1):
        for kind, engine in engines.items():
            limit = min(VOCABULARY, engine.info.vocab_size)
            shape = (1 + len(FORMATS), SEQUENCES if number else 2, LENGTH)
            batches = rng.integers(0, limit, shape, np.uint32)
            took = {f"{kind} alone": await alone(engine, batches[0])}
            for ids, (name, media_type) in zip(batches[1:], FORMATS.items(), strict=True):
                took |= {f"{kind} {name} {what}": ms for what, ms in request(client, kind, ids, media_type).items()}
            if number:
                for variant, ms in took.items():
                    times.setdefault(variant, []).append(ms)
    for engine in engines.values():
        await engine.close()
    return times


async def alone(engine: Engine, ids: np.ndarray[Any, np.dtype[np.uint32]]) -> float:
    """The engine called in this process."""
    began = time.perf_counter()
    results = await engine.score([Job(row) for row in ids])
    assert not any(isinstance(result, Exception) for result in results)
    return 1000 * (time.perf_counter() - began)


def request(client: httpx.Client, model: str, ids: np.ndarray[Any, Any], media_type: str) -> dict[str, float]:
    """One request as a client makes it, then the same again."""
    request_ms, usage = exchange(client, model, ids, media_type)
    hit_ms, again = exchange(client, model, ids, media_type)
    assert (usage.cached_tokens, again.cached_tokens) == (0, ids.size)
    return {"request": request_ms, "overhead": request_ms - usage.engine_ms, "hit": hit_ms}


def exchange(
    client: httpx.Client, model: str, ids: np.ndarray[Any, Any], media_type: str
) -> tuple[float, schema.Usage]:
    began = time.perf_counter()
    sequences = [{"token_ids": wire.pack(row, wire.U4, media_type)} for row in ids]
    body = wire.encode({"model": model, "sequences": sequences}, media_type)
    response = client.post("/v1/priorities", content=body, headers={"content-type": media_type})
    answer = wire.decode(response.raise_for_status().content, schema.PriorityResponse, media_type)
    for result in answer.results:
        for values in (result.logprobs, result.priorities):
            assert isinstance(values, bytes | list)
            assert len(wire.unpack(values, wire.F4, "")) == LENGTH
    return 1000 * (time.perf_counter() - began), answer.usage


def report(times: dict[str, list[float]], rounds: int) -> None:
    """A table, then everything in one line of JSON."""
    medians = {variant: statistics.median(values) for variant, values in times.items()}
    print(f"{SEQUENCES} sequences x {LENGTH} tokens, medians of {rounds} rounds, ms")
    print(f"{'engine':8}{'format':10}{'alone':>10}{'request':>10}{'overhead':>10}{'share':>9}{'hit':>10}")
    for kind in ("fake", "torch"):
        base = medians[f"{kind} alone"]
        for name in FORMATS:
            asked, over, hit = (medians[f"{kind} {name} {what}"] for what in ("request", "overhead", "hit"))
            print(f"{kind:8}{name:10}{base:10.1f}{asked:10.1f}{over:10.1f}{over / base:9.1%}{hit:10.1f}")
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    shape = {"sequences": SEQUENCES, "length": LENGTH, "vocabulary": VOCABULARY, "rounds": rounds}
    print(json.dumps({**shape, **machine, "ms": {variant: round(ms, 3) for variant, ms in medians.items()}}))


if __name__ == "__main__":
    main()
