"""One server, many teams: what a quiet team waits while another sends in bulk, and how much a server gets done.

    python tests/benchmarks/load.py [--quick] [--json]

Real server processes on loopback, with keys of two teams: a small random model under the torch engine with one thread,
and the fake engine; SQLite files. The loads run in processes of their own.

Two teams, on the torch engine: `quiet` sends a request of one sequence of 1,024 tokens every two seconds on average
(about 5 % of what the engine can do), whatever becomes of those before; `bulk` keeps 8 requests of 16 sequences of 512
tokens in flight. Each alone, then both, on a server with a queue in order of arrival (FIFO) and on ours, in turn over
several rounds. A wait is from when the request was due until every number of its answer was read.

On the fake engine, so that HTTP and not a model is measured: 1, 8 and 64 clients with new sequences; 4 clients whose 64
sequences of 1,024 tokens the store knows. Last, memory of our server under mixed traffic (new, stored, text, malformed,
refused, given up; both teams on the torch engine beside it): the median of the last tenth of samples less that of the
first, after a warm-up that fills the store's memory.

Prints one table; with --json also one last line of JSON. Knows nothing of whether the numbers are right; tests/service
does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from traffic import model
from traffic.bulk import SEQUENCES, TOKENS, bulk
from traffic.closed import Done, closed
from traffic.mixed import mixed
from traffic.quiet import quiet
from traffic.server import Server, server
from traffic.worker import Worker


@dataclass(frozen=True, slots=True)
class Length:
    """How long everything is measured, in seconds."""

    rounds: int
    phase: float
    closed: float
    memory: float


FULL, QUICK = Length(5, 40, 15, 600), Length(2, 16, 5, 60)
CLIENTS = (1, 8, 64)
NEW, STORED = (4, 512), (64, 1024)
"""Sequences and tokens of the requests on the fake engine."""
HIT_CLIENTS, HIT_BODIES = 4, 8
WARM_UP_SECONDS = 15
"""Of mixed traffic, before memory is looked at."""


@dataclass
class Shared:
    """The two teams, over all rounds."""

    waits: dict[str, list[float]] = field(default_factory=dict)
    """Condition -> seconds of each quiet request."""
    bulk: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Condition -> tokens and seconds of bulk in each round."""

    def rate(self, condition: str) -> float:
        """Bulk tokens per second."""
        return sum(tokens for tokens, _ in self.bulk[condition]) / sum(took for _, took in self.bulk[condition])

    def p99(self, condition: str) -> float:
        """By nearest rank: of fewer than 100 requests, the slowest."""
        return float(np.percentile(self.waits[condition], 99, method="inverted_cdf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="under five minutes in all")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is stopped then, too
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), QUICK if options.quick else FULL)
    if options.json:
        print(json.dumps(figures))


def measure(folder: Path, length: Length) -> dict[str, Any]:
    """All figures, printed as they come."""
    path = model.save(folder / "model")
    print("| | |\n|---|---|", flush=True)
    with server(folder / "fair", path, "fair") as ours:
        with server(folder / "fifo", path, "fifo") as fifo:
            found = teams(ours, fifo, length)
        figures = report_teams(found)
        for clients in CLIENTS:
            done = fake(ours, clients, length.closed, NEW)
            figures[f"clients_{clients}_tokens_per_s"] = report_done(f"new, {clients} clients", done)
        done = fake(ours, HIT_CLIENTS, length.closed, STORED, repeated=HIT_BODIES)
        figures["hit_tokens_per_s"] = report_done(f"store hits, {HIT_CLIENTS} clients", done)
        figures["hit_tokens_per_cpu_s"] = round(done.tokens / done.cpu_seconds)
        figures["memory_growth_mib"] = memory(ours, length.memory)
    return figures


def teams(ours: Server, fifo: Server, length: Length) -> Shared:
    """Every condition once in each round."""
    shared = Shared()
    for seed in range(length.rounds):
        shared.waits.setdefault("alone", []).extend(one_phase(ours, length.phase, seed, waiting=True)[0])
        shared.bulk.setdefault("alone", []).append(one_phase(ours, length.phase, seed, loaded=True)[1])
        for condition, each in (("fifo", fifo), ("ours", ours)):
            waits, rate = one_phase(each, length.phase, seed, waiting=True, loaded=True)
            shared.waits.setdefault(condition, []).extend(waits)
            shared.bulk.setdefault(condition, []).append(rate)
    return shared


def one_phase(
    each: Server, seconds: float, seed: int, *, waiting: bool = False, loaded: bool = False
) -> tuple[list[float], tuple[int, float]]:
    """The quiet team's waits, and bulk's tokens and seconds, with one or both at work."""
    waits: list[float] = []
    times: list[float] = []
    with contextlib.ExitStack() as stack:
        if loaded:
            filling = stack.enter_context(Worker(bulk, each.target("bulk")))
            each.wait(busy=True)
        if waiting:
            waits = stack.enter_context(Worker(quiet, each.target("quiet"), seconds, seed)).result()
        else:
            time.sleep(seconds)
        if loaded:
            times = filling.stop()
    each.wait(busy=False)
    # From an answer to an answer, so that neither edge counts part of a request.
    return waits, (SEQUENCES * TOKENS * (len(times) - 1), times[-1] - times[0]) if loaded else (0, 0.0)


def fake(ours: Server, clients: int, seconds: float, shape: tuple[int, int], repeated: int = 0) -> Done:
    """Closed-loop clients on the fake engine."""
    target = ours.target("bulk", "fake")
    with Worker(closed, target, ours.pid, clients, seconds, shape, repeated) as worker:
        return worker.result()


def memory(ours: Server, seconds: float) -> float:
    """MiB by which the server grew in `seconds` of mixed traffic."""
    with (
        Worker(bulk, ours.target("bulk")) as filling,
        Worker(mixed, ours.target("operator", "fake"), 100) as mixing,
        Worker(quiet, ours.target("quiet"), WARM_UP_SECONDS + seconds, 100) as asking,
    ):
        time.sleep(WARM_UP_SECONDS)
        sizes = [sample(ours) for _ in range(int(seconds))]
        requests = mixing.stop() | {"quiet": len(asking.result()), "bulk": len(filling.stop())}
    tenth = max(1, len(sizes) // 10)
    grown = statistics.median(sizes[-tenth:]) - statistics.median(sizes[:tenth])
    told = ", ".join(f"{count:,} {kind}" for kind, count in requests.items())
    print(f"| memory of the server after the warm-up, MiB | {sizes[0]:,.0f}, at most {max(sizes):,.0f} |")
    print(f"| its growth over {seconds:.0f} s, MiB ({told}) | {grown:+.1f} |", flush=True)
    return round(grown, 1)


def sample(ours: Server) -> float:
    """Its memory, a second later."""
    time.sleep(1)
    return ours.resident_mib


def report_teams(found: Shared) -> dict[str, Any]:
    """Print the teams' rows; their figures."""
    names = {"alone": "alone", "fifo": "with bulk, FIFO", "ours": "with bulk, ours"}
    for condition, name in names.items():
        waits = 1000 * np.array(found.waits[condition])
        shown = f"{np.median(waits):,.0f} / {1000 * found.p99(condition):,.0f} / {waits.max():,.0f}"
        print(f"| quiet team {name}, ms: p50 / p99 / max of {len(waits)} requests | {shown} |")
    for condition, name in zip(names, ("alone", "with quiet, FIFO", "with quiet, ours"), strict=True):
        print(f"| bulk team {name}, tokens/s | {found.rate(condition):,.0f} |")
    figures = {
        "quiet_p99_ratio": round(found.p99("ours") / found.p99("alone"), 2),
        "quiet_p99_ratio_fifo": round(found.p99("fifo") / found.p99("alone"), 2),
        "bulk_share": round(found.rate("ours") / found.rate("alone"), 3),
        "bulk_share_fifo": round(found.rate("fifo") / found.rate("alone"), 3),
    }
    print(f"| quiet p99 over alone: FIFO, ours | {figures['quiet_p99_ratio_fifo']}, {figures['quiet_p99_ratio']} |")
    print(f"| bulk share: FIFO, ours | {figures['bulk_share_fifo']}, {figures['bulk_share']} |", flush=True)
    return figures


def report_done(name: str, done: Done) -> int:
    """Print a row of the fake engine's; its tokens per second."""
    rate = done.tokens / done.seconds
    shown = f"{rate:,.0f} ({done.requests / done.seconds:,.0f} requests/s)"
    cpu = done.tokens / done.cpu_seconds
    print(f"| {name}, tokens/s; per second of the server's CPU | {shown}; {cpu:,.0f} |", flush=True)
    return round(rate)


if __name__ == "__main__":
    main()
