"""How fast each way of scoring is, and what memory it takes.

    python tests/benchmarks/engine.py [--quick] [--json] [--sequences N] [--tokens T] [--rounds R] [--threads N]

Ways: our vLLM engine in process; the same engine behind our HTTP service (msgpack, 8 clients in a process of their
own); vLLM's `prompt_logprobs=0` in process, as a dict per token and flat without detokenising; `vllm serve` over HTTP
(`/v1/completions`, prompt_logprobs=0, 8 clients); our torch engine; plain padded transformers, target logprob only.
Models: random, a Llama shape of vocabulary 8,192 and a Qwen3 shape of 151,936, in float32 and bfloat16. In each round
every way scores the same fresh sequences, in turn, so that noise falls on all alike; medians over rounds. Memory: how
far the worker's peak rises above its size before, scoring one long prompt.

Prints a table; with --json also one last line of JSON. Knows nothing of whether the numbers are right; tests/service
does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scoring import memory, models
from scoring.way import Way
from scoring.ways import ways

WARM_UP = 2
"""Sequences scored by each way before the first round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="float32, fewer and shorter rounds")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--sequences", type=int, help="sequences of a round")
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, help="rounds")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads of each engine")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "OMP_NUM_THREADS": str(options.threads)}
    os.environ |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "VLLM_NO_USAGE_STATS": "1"}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for shape in models.SHAPES:
            for dtype in ("float32",) if options.quick else ("float32", "bfloat16"):
                print(f"\n{shape}, {dtype}", flush=True)
                rows += measure(Path(folder), shape, dtype, options)
    if options.json:
        print(json.dumps(summary(rows)))


def measure(folder: Path, shape: str, dtype: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every way on one model: rows of the table, which is printed as it comes."""
    path = models.saved(folder, shape)
    count = options.sequences or models.sequences(shape, quick=options.quick)
    rounds = options.rounds or (2 if options.quick else 5)
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    with ways(path, dtype, options.threads, quick=options.quick) as contenders:
        for number in range(rounds + 1):
            batch = models.batch(rng, shape, count if number else WARM_UP, options.tokens)
            for way in contenders:
                took = way.time(batch)
                if number:
                    seconds.setdefault(way.name, []).append(took)
        long = models.batch(rng, shape, 1, models.LONGEST)
        for way in contenders:
            if way.worker is not None:
                peaks[way.name] = memory.rise(way.worker, partial(way.time, long))
    gc.collect()
    return report(shape, dtype, count * options.tokens, seconds, peaks)


def report(
    shape: str, dtype: str, tokens: int, seconds: dict[str, list[float]], peaks: dict[str, float]
) -> list[dict[str, Any]]:
    """Print one model's table and return its rows."""
    rows = []
    print("| way | tokens/s | min to max | peak memory, MiB |")
    print("|---|---|---|---|")
    for name, took in seconds.items():
        rates = [tokens / each for each in took]
        peak = peaks.get(name)
        rate = statistics.median(rates)
        shown = "" if peak is None else f"{peak:,.0f}"
        print(f"| {name} | {rate:,.0f} | {min(rates):,.0f} to {max(rates):,.0f} | {shown} |", flush=True)
        rows.append({"shape": shape, "dtype": dtype, "way": name, "tokens_per_second": rate, "peak_mib": peak})
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of medians, in float32: vocabulary 8k unless the name says otherwise."""
    rate = {(row["shape"], row["way"]): row["tokens_per_second"] for row in rows if row["dtype"] == "float32"}
    peak = {(row["shape"], row["way"]): row["peak_mib"] for row in rows if row["dtype"] == "float32"}
    small, large = models.SHAPES
    return {
        "fast_over_prompt_logprobs": round(rate[small, Way.FAST] / rate[small, Way.DICT], 2),
        "fast_over_flat": round(rate[small, Way.FAST] / rate[small, Way.FLAT], 2),
        "http_over_fast": round(rate[small, Way.HTTP] / rate[small, Way.FAST], 3),
        "http_over_fast_152k": round(rate[large, Way.HTTP] / rate[large, Way.FAST], 3),
        "fast_over_prompt_logprobs_152k": round(rate[large, Way.FAST] / rate[large, Way.DICT], 2),
        "fast_over_flat_152k": round(rate[large, Way.FAST] / rate[large, Way.FLAT], 2),
        "http_over_vllm_serve": round(rate[large, Way.HTTP] / rate[large, Way.SERVE], 2),
        "peak_mib_fast": round(peak[large, Way.FAST]),
        "peak_mib_prompt_logprobs": round(peak[large, Way.DICT]),
    }


if __name__ == "__main__":
    main()
