"""Every kernel of the weighted loss on a GPU: whether its gradients are right, and what it takes.

    python tests/benchmarks/kernels.py [--json]

The kernels are TRL's head, our own, Liger's and CCE's (`pip install 'tokenpriority[liger,cce]'`); what one cannot do
here stands in its row in words. Each is held against the loss of whole logits in float64, with weights of both signs
and 0, by the largest error of any entry of the gradients over the largest gradient: in float32 at most 1e-5, in
bfloat16 at most twice that of whole logits in bfloat16. Times and rises of memory, forward and backward, are those of
the head of Qwen3-0.6B (width 1,024, vocabulary 151,936) over 8,192 tokens in bfloat16, interleaved, the median of
five rounds after one that is not counted. With --json the last line holds all of it and the GPU's name. Exits with 1
if a gradient is out of its bound.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping
from functools import partial

import torch

from tokenpriority_trainer.libraries import Library, absent, unready
from training.losses import Problem, Way, by_library, chunked, naive, trl_weighted

WHOLE = "whole logits"
LIBRARIES: tuple[Library, ...] = ("liger", "cce")
WAYS: dict[str, Way] = {
    WHOLE: naive,
    "trl": trl_weighted,
    "chunked": chunked,
    **{library: partial(by_library, library) for library in LIBRARIES},
}
SMALL, LARGE = (512, 256, 32_768), (8192, 1024, 151_936)
"""Tokens, width and vocabulary: of the gradients that are checked, and of the times."""
ROUNDS = 5
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Row = dict[str, float | str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("kernels.py: there is no CUDA device")
    device = torch.device("cuda")
    rows: dict[str, Row] = {name: {} for name in WAYS}
    for dtype in DTYPES:
        for name, error in errors(device, dtype, SMALL).items():
            rows[name][f"error_{dtype}"] = error
    for name, row in costs(device, LARGE).items():
        rows[name] |= row
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(table(rows))
    wrong = out_of_bound(rows)
    print("\n".join(wrong))
    if arguments.json:
        print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "kernels": rows}))
    sys.exit(bool(wrong))


def refusal(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a way cannot be gone here; None if it can."""
    library = next((each for each in LIBRARIES if each == name), None)
    return None if library is None else absent(library) or unready(library, dtype, device)


def gradients(way: Way, problem: Problem) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(way(problem), (problem.hidden, problem.head))


def errors(device: torch.device, dtype: str, sizes: tuple[int, int, int]) -> Row:
    """Way -> the largest error of its gradients over the largest gradient, or why there is none."""
    drawn = Problem.random(*sizes, zeros=0.2)
    truth = gradients(naive, drawn.on(device, torch.float64))
    size = max(each.abs().max().item() for each in truth)
    found: Row = {}
    for name, way in WAYS.items():
        reason = refusal(name, device, DTYPES[dtype])
        if reason is None:
            mine = gradients(way, drawn.on(device, DTYPES[dtype]))
            pairs = zip(mine, truth, strict=True)
            found[name] = max((one.double() - other).abs().max().item() for one, other in pairs) / size
        else:
            found[name] = reason
    return found


def costs(device: torch.device, sizes: tuple[int, int, int]) -> dict[str, Row]:
    """Way -> medians of its milliseconds and of the MiB the device's memory rose by, gradients included."""
    problem = Problem.random(*sizes, zeros=0.0).on(device, torch.bfloat16)
    ways = {name: way for name, way in WAYS.items() if refusal(name, device, torch.bfloat16) is None}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before, start = torch.cuda.memory_allocated(), time.perf_counter()
            gradients(way, problem)
            torch.cuda.synchronize()
            if number:
                rise = torch.cuda.max_memory_allocated() - before
                found[name].append((1e3 * (time.perf_counter() - start), rise / 2**20))
    return {
        name: dict(
            zip(("ms", "mib"), (round(statistics.median(each), 1) for each in zip(*rounds, strict=True)), strict=True)
        )
        for name, rounds in found.items()
    }


def out_of_bound(rows: Mapping[str, Row]) -> list[str]:
    """A line for each gradient that is further from the truth than it may be."""
    whole = rows[WHOLE]["error_bfloat16"]
    limits = {"error_float32": 1e-5, "error_bfloat16": 2 * float(whole)}
    return [
        f"{name}: {key} is {value:.3g}, limit {limit:.3g}"
        for key, limit in limits.items()
        for name, row in rows.items()
        if isinstance(value := row[key], float) and not value <= limit
    ]


def table(rows: Mapping[str, Row]) -> str:
    keys = ("error_float32", "error_bfloat16", "ms", "mib")
    lines = [f"| kernel | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 1)}"]
    for name, row in rows.items():
        cells = (f"{value:.5g}" if isinstance(value := row.get(key, "-"), float) else value for key in keys)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
