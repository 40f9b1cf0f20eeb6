"""What `score_from` and shared prompts save.

    python tests/benchmarks/prompts.py [--quick] [--json]

Sequences of 512 tokens of which the last tenth is wanted. `all rows`: everything is scored. `wanted rows`: score_from
at the last tenth, so that lm_head and statistics run on those rows alone. `shared prompt`: the same, and the first
nine tenths are one prompt common to all, with vLLM's prefix cache off and on. One engine core with the cache and one
without; in each round every variant scores fresh sequences, in turn; medians over rounds, in tokens submitted per
second.

Knows nothing of whether the numbers are right; tests/service does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from scoring import models
from tokenpriority_service.engines import Engine, Job, load_engine

LENGTH, PROMPT = 512, 461


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds instead of 7, and the small vocabulary only")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": "1"}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in list(models.SHAPES)[: 1 if options.quick else None]:
            found[shape] = measure(Path(folder), shape, 3 if options.quick else 7)
            report(shape, found[shape])
    if options.json:
        print(
            json.dumps({shape: {name: round(rate) for name, rate in rates.items()} for shape, rates in found.items()})
        )


def measure(folder: Path, shape: str, rounds: int) -> dict[str, float]:
    """Tokens submitted per second of each variant."""
    path = str(models.saved(folder, shape))
    cached = load_engine("vllm", model=path, threads=1, prefix_caching=True)
    plain = load_engine("vllm", model=path, threads=1, prefix_caching=False)
    variants = {
        "all rows": (plain, 1, False),
        "wanted rows": (plain, PROMPT, False),
        "shared prompt, cache off": (plain, PROMPT, True),
        "shared prompt, cache on": (cached, PROMPT, True),
    }
    rng = np.random.default_rng(0)
    count = models.sequences(shape, quick=True)
    rates: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for name, (engine, score_from, shared) in variants.items():
            ids = np.array(models.batch(rng, shape, count, LENGTH), np.uint32)
            if shared:
                ids[:, :PROMPT] = ids[0, :PROMPT]
            took = score(engine, [Job(row, score_from) for row in ids])
            if number:
                rates.setdefault(name, []).append(ids.size / took)
    for engine in (cached, plain):
        asyncio.run(engine.close())
    return {name: statistics.median(each) for name, each in rates.items()}


def score(engine: Engine, jobs: list[Job]) -> float:
    """Seconds to score the jobs."""
    start = time.perf_counter()
    for result in asyncio.run(engine.score(jobs)):
        if isinstance(result, Exception):
            raise result
    return time.perf_counter() - start


def report(shape: str, rates: dict[str, float]) -> None:
    print(f"\n{shape}, float32\n")
    print(f"| {LENGTH} tokens, {LENGTH - PROMPT} wanted | tokens/s | times all rows |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['all rows']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
