"""What the evidence store costs: ms per 65,536 tokens, in memory.

    python tests/benchmarks/store.py [--json]

64 sequences of 1,024 tokens, all six signals. `keys` digests the ids into the keys of their blocks, `keep` stores their
evidence, `hit` reads all of it back. In each round each runs once on fresh ids; medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time

import numpy as np

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.store import MemoryStore, Wanted, content_keys

SEQUENCES, LENGTH, ROUNDS = 64, 1024, 15


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    as_json = parser.parse_args().json
    rounds = [asyncio.run(measure(seed)) for seed in range(ROUNDS + 1)][1:]
    medians = {name: round(statistics.median(each[name] for each in rounds), 2) for name in rounds[0]}
    print(f"ms per {SEQUENCES * LENGTH:,} tokens, median of {ROUNDS} rounds\n")
    print("| step | ms |\n|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} |")
    if as_json:
        print(json.dumps(medians))


async def measure(seed: int) -> dict[str, float]:
    """Step -> milliseconds."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50_000, (SEQUENCES, LENGTH)).astype(np.uint32)
    evidence = rng.random((SEQUENCES, len(SIGNALS), LENGTH), np.float32)
    store = MemoryStore(1 << 30)
    times = [time.perf_counter()]
    wanted = [Wanted(content_keys("model", each), LENGTH, 1) for each in ids]
    times.append(time.perf_counter())
    await store.keep(list(zip(wanted, evidence, strict=True)))
    times.append(time.perf_counter())
    found = await store.find(wanted)
    times.append(time.perf_counter())
    assert all(np.array_equal(got[:, 1:], given[:, 1:]) for got, given in zip(found, evidence, strict=True))
    return dict(zip(("keys", "keep", "hit"), 1000 * np.diff(times), strict=True))


if __name__ == "__main__":
    main()
