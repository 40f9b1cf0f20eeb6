"""What bulk work gets of vLLM beside interactive work that would take all of it.

    python tests/benchmarks/classes.py [--seconds S] [--json]

Our server over real vLLM on one thread, nothing stored, clients over loopback in this process, each of which asks anew
as soon as it is answered: interactive ones for 8 sequences of 512 fresh tokens, bulk ones for 16. Phases one after the
other, each until all that was asked is answered. Bulk's share is of the tokens of both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import get_args

import numpy as np

from scoring import models
from scoring.ways import MODEL, service
from tokenpriority import AsyncClient
from tokenpriority.schema import ServiceClass
from tokenpriority_service.engines import load_engine

PHASES = {"interactive alone": (16, 0), "bulk alone": (0, 4), "one_bulk": (16, 1), "four_bulk": (16, 4)}
"""Interactive and bulk clients."""
ROWS = {"interactive": 8, "bulk": 16}
TOKENS = 512
CLASSES: tuple[ServiceClass, ...] = get_args(ServiceClass)

Rates = dict[str, float]
"""Tokens per second of each class."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25.0, help="of each phase")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        path = models.saved(Path(folder), next(iter(models.SHAPES)))
        engine = load_engine("vllm", model=str(path), dtype="float32", threads=1)
        with service(engine) as url:
            found = {phase: asyncio.run(rates(url, *clients, options.seconds)) for phase, clients in PHASES.items()}
        asyncio.run(engine.close())
    report(found)
    if options.json:
        print(json.dumps({f"bulk_share_{phase}": share(found[phase]) for phase in ("one_bulk", "four_bulk")}))


async def rates(url: str, interactive: int, bulk: int, seconds: float) -> Rates:
    """What each class was answered, with so many clients of each."""
    rng = np.random.default_rng(time.time_ns())
    answered: Counter[str] = Counter()
    began = time.monotonic()

    async def ask(name: ServiceClass) -> None:
        async with AsyncClient(url, model=MODEL, service_class=name, timeout=300) as client:
            while time.monotonic() < began + seconds:
                ids = rng.integers(1, 8_000, (ROWS[name], TOKENS)).tolist()
                await client.score(ids, method="prift_prob")
                answered[name] += ROWS[name] * TOKENS

    clients = dict(zip(CLASSES, (interactive, bulk), strict=True))
    await asyncio.gather(*(ask(name) for name, count in clients.items() for _ in range(count)))
    took = time.monotonic() - began
    return {name: answered[name] / took for name in CLASSES}


def share(found: Rates) -> float:
    return round(found["bulk"] / sum(found.values()), 3)


def report(found: dict[str, Rates]) -> None:
    print("| interactive and bulk clients | interactive, tokens/s | bulk, tokens/s | bulk's share |\n|---|---|---|---|")
    for phase, each in found.items():
        counts = " and ".join(map(str, PHASES[phase]))
        print(f"| {counts} | {each['interactive']:,.0f} | {each['bulk']:,.0f} | {share(each):.2f} |")


if __name__ == "__main__":
    main()
