"""Where the time of scoring goes after the last layer: ns per logit of each step, on one CPU thread.

    python tests/benchmarks/head.py [--json]

The product of hidden states with lm_head, which every way of scoring pays; our statistics of its result, fused and in
blocks; and what vLLM does for `prompt_logprobs` instead: log_softmax, the target's entry and its rank. As many rows as
the engine takes at once, random weights 128 wide; in each round every step runs once, in turn. Medians.

Knows nothing of engines or of whether the numbers are right.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from tokenpriority_service.engines.chunks import chunk_rows
from tokenpriority_service.engines.statistics import can_fuse, token_statistics

VOCABULARIES = (8_192, 151_936)
HIDDEN, LOGITS_BYTES, ROUNDS = 128, 1 << 28, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    found = {vocabulary: measure(vocabulary) for vocabulary in VOCABULARIES}
    report(found)
    if as_json:
        print(json.dumps(found))


def measure(vocabulary: int) -> dict[str, float]:
    """Step -> ns per logit, median over the rounds."""
    rows = chunk_rows(LOGITS_BYTES, vocabulary, "cpu")
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS + 1):  # the first compiles and touches memory
        for name, seconds in timed(rows, vocabulary).items():
            times.setdefault(name, []).append(seconds / (rows * vocabulary) * 1e9)
    return {name: round(statistics.median(each[1:]), 2) for name, each in times.items()}


def timed(rows: int, vocabulary: int) -> dict[str, float]:
    """Step -> seconds, each once."""
    hidden, weight = torch.randn(rows, HIDDEN), torch.randn(vocabulary, HIDDEN) * 0.1
    targets = torch.randint(0, vocabulary, (rows,))
    seconds: dict[str, float] = {}

    def clock(name: str, step: Callable[[], Tensor]) -> Tensor:
        start = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - start
        return result

    logits = clock("product with lm_head", lambda: hidden @ weight.T)
    overwritten = logits.clone()
    steps = {"our statistics, in blocks": lambda: token_statistics(overwritten, targets)}
    if can_fuse("cpu"):
        steps["our statistics, fused"] = lambda: token_statistics(logits, targets, fused=True)
    steps["log_softmax, target and rank"] = lambda: log_softmax_and_rank(logits, targets)
    for name, step in steps.items():
        clock(name, step)
    return seconds


def log_softmax_and_rank(logits: Tensor, targets: Tensor) -> Tensor:
    """[2, n]: logprob and rank, from the whole matrix of log-probabilities."""
    logprobs = logits.log_softmax(-1, dtype=torch.float32)
    chosen = logprobs.gather(-1, targets[:, None])
    return torch.stack([chosen[:, 0], (logprobs >= chosen).sum(-1).float()])


def report(found: dict[int, dict[str, float]]) -> None:
    print(f"{platform.machine()}, torch {torch.__version__}, 1 thread, ns per logit, median of {ROUNDS} rounds\n")
    print("| step | " + " | ".join(f"vocabulary {vocabulary:,}" for vocabulary in found) + " |")
    print("|---|" + "---|" * len(found))
    for name in next(iter(found.values())):
        print(f"| {name} | " + " | ".join(f"{figures[name]:.2f}" for figures in found.values()) + " |")


if __name__ == "__main__":
    main()
