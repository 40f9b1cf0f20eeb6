"""What the trainer costs: time and memory against plain TRL and the naive weighted loss, and what it waits for weights.

    python tests/benchmarks/trainer.py [--quick] [--json] [--rounds N]

Two measurements for vocabularies of 8,192 and 151,936, float32, each forward and backward. The loss alone, from given
hidden states to the gradients on them and on the lm head: whole logits, TRL's head and our two kernels, without weights
of 0 and with half of them 0. And whole steps, on a small random Llama with tied embeddings, of TRL's SFTTrainer, of a
trainer that weighs whole logits, and of ours. In each round every way runs once, in turn, so that noise falls on all
alike; ratios are taken within a round, and medians over rounds. Memory is the rise of the process's peak resident set,
gradients included.

TRL 1.16 holds no whole logits under its default `nll` either: without a GPU that is its fused head in torch, which
projects 4,096 tokens x 32,768 columns at a time and computes them anew in the backward pass. `chunked_nll` is a
deprecated name of the same: SFTConfig replaces it by `nll`. Both are run, so the ratio of one to the other is what the
measurement is wrong by.

With --json the last line has, for the larger vocabulary: `kernel`, the one of ours with the faster step;
`time_over_trl`, its step over TRL's under `chunked_nll`; `time_over_trl_nll`, under `nll`; `nll_over_chunked_nll`, the
error just spoken of; `step_memory_over_naive` and `memory_over_naive`, its step and its loss over those of whole
logits; `loss_time_over_trl` and `loss_memory_over_trl`, the loss under kernel chunked over that under kernel trl, which
decide the default: 0.9 or less, or 0.7 or less. And, from `training/waiting.py`, which says what is simulated,
`wait_share`, the share of a training's time that it waits for priorities once the first are there, `filling_seconds`,
what it waits until then, and what else is measured there.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from scoring.memory import rise
from training import waiting
from training.losses import WAYS, Problem, Way
from training.steps import NAIVE as NAIVE_STEP
from training.steps import OURS as OUR_STEPS
from training.steps import PLAIN, steps

VOCABULARIES = (8_192, 151_936)
TOKENS, WIDTH, ZEROS = 2048, 256, 0.5
NAIVE, TRL, OURS = SOME = "weighted, whole logits", "weighted, kernel trl", "weighted, kernel chunked"

Cost = tuple[float, float]
"""Seconds and MiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round, no half weights 0, no plain losses")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are counted, unless --quick")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else arguments.rounds
    machine = f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads"
    print(f"{machine}, {TOKENS:,} tokens, {WIDTH} wide, counted rounds: {rounds}")
    for vocabulary in VOCABULARIES:
        ways = losses(TOKENS, vocabulary, zeros=0.0)
        full = measure({name: ways[name] for name in (SOME if arguments.quick else ways)}, rounds)
        report(f"loss, vocabulary {vocabulary:,}, every weight other than 0", full, NAIVE)
        if not arguments.quick:
            some = measure(losses(TOKENS, vocabulary, zeros=ZEROS), rounds)
            report(f"loss, vocabulary {vocabulary:,}, weights 0: {ZEROS:.0%}", some, NAIVE)
        with tempfile.TemporaryDirectory() as folder:
            whole = measure(steps(Path(folder), vocabulary, WIDTH, TOKENS), rounds)
        report(f"step, vocabulary {vocabulary:,}", whole, PLAIN["chunked_nll"])
    waited = waiting.measure(arguments.quick)
    if arguments.json:
        print(json.dumps(summary(full, whole) | waited))


def losses(tokens: int, vocabulary: int, *, zeros: float) -> dict[str, Callable[[], object]]:
    problem = Problem.random(tokens, WIDTH, vocabulary, zeros=zeros)
    return {name: partial(gradients, way, problem) for name, way in WAYS.items()}


def gradients(way: Way, problem: Problem) -> object:
    return torch.autograd.grad(way(problem), (problem.hidden, problem.head))


def measure(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[Cost]]:
    """What every way costs in every round; a round that is not counted goes first."""
    found: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            give_back()
            start = time.perf_counter()
            memory = rise(os.getpid(), way)
            if number:
                found[name].append((time.perf_counter() - start, memory))
    return found


def give_back() -> None:
    """Hand freed memory back to the system, where glibc would keep it: it could not rise again."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def ratio(found: dict[str, list[Cost]], name: str, over: str, which: int) -> float:
    """Median over the rounds of a way's cost over another's, 0 for time and 1 for memory (of 1 MiB at least)."""
    least = (1e-9, 1.0)[which]
    pairs = zip(found[name], found[over], strict=True)
    return round(statistics.median(one[which] / max(other[which], least) for one, other in pairs), 3)


def report(title: str, found: dict[str, list[Cost]], over: str) -> None:
    print(f"\n{title}\n\n| way | ms | over {over} | MiB | over {over} |\n|---|---|---|---|---|")
    for name, costs in found.items():
        seconds, memory = (statistics.median(each) for each in zip(*costs, strict=True))
        times, sizes = (ratio(found, name, over, which) for which in (0, 1))
        print(f"| {name} | {seconds * 1e3:.0f} | {times:.3f} | {memory:.0f} | {sizes:.3f} |")


def summary(loss: dict[str, list[Cost]], step: dict[str, list[Cost]]) -> dict[str, float | str]:
    over = {kernel: ratio(step, name, PLAIN["chunked_nll"], 0) for kernel, name in OUR_STEPS.items()}
    kernel = min(over, key=lambda name: over[name])
    return {
        "kernel": kernel,
        "time_over_trl": over[kernel],
        "time_over_trl_nll": ratio(step, OUR_STEPS[kernel], PLAIN["nll"], 0),
        "nll_over_chunked_nll": ratio(step, PLAIN["nll"], PLAIN["chunked_nll"], 0),
        "step_memory_over_naive": ratio(step, OUR_STEPS[kernel], NAIVE_STEP, 1),
        "memory_over_naive": ratio(loss, f"weighted, kernel {kernel}", NAIVE, 1),
        "loss_time_over_trl": ratio(loss, OURS, TRL, 0),
        "loss_memory_over_trl": ratio(loss, OURS, TRL, 1),
    }


if __name__ == "__main__":
    main()
