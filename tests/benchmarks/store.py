"""What the evidence store costs: ms per 65,536 tokens, in memory, in SQLite and in PostgreSQL.

    python tests/benchmarks/store.py [--postgres URL] [--json]

64 sequences of 1,024 tokens, all six signals. `keys` digests the ids into the keys of their blocks; `keep` has their
evidence kept, `write` is how much later it is committed; `hit` reads all of it back, from memory or from the table;
`miss` looks for as much that is not there; `covered` asks how much is there without reading it. In each round each runs
once on fresh ids; medians. PostgreSQL is one that the benchmark starts itself, or the empty database at URL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import numpy as np

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import upgrade
from tokenpriority_service.store import LayeredStore, MemoryStore, Wanted, content_keys

SEQUENCES, LENGTH, ROUNDS = 64, 1024, 15
TOKENS = SEQUENCES * LENGTH


class Unwatched:
    """Fails when the store does."""

    def stored(self, hits_blocks: int, missed_blocks: int) -> None:
        """Nobody counts."""

    def store_failed(self, what: str) -> None:
        """The figures would be of something else."""
        raise RuntimeError(f"the store failed: {what}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--postgres", help="URL of an empty database")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {"SQLite": f"sqlite:///{folder}/store.db", "PostgreSQL": options.postgres or own_postgres(stack)}
        figures = asyncio.run(in_memory())
        for name, url in urls.items():
            figures |= {f"{name}: {step}": ms for step, ms in asyncio.run(in_table(url)).items()}
    print(f"per {TOKENS:,} tokens, median of {ROUNDS} rounds\n")
    print("| step | ms | M tokens/s |\n|---|---|---|")
    for step, ms in figures.items():
        print(f"| {step} | {ms:.2f} | {TOKENS / ms / 1000:.1f} |")
    if options.json:
        print(json.dumps(figures))


def own_postgres(stack: contextlib.ExitStack) -> str:
    """URL of a database on a server started here, with fsync as it comes."""
    sys.path.append(str(Path(__file__).parents[1] / "support"))
    from postgres import Postgres

    return stack.enter_context(Postgres(fsync=True)).create_database()


async def in_memory() -> dict[str, float]:
    """Step -> milliseconds, of a MemoryStore."""
    rounds = []
    for seed in range(ROUNDS + 1):
        ids, evidence = content(seed)
        start = time.perf_counter()
        wanted = [Wanted(content_keys("model", each), LENGTH, 1) for each in ids]
        keys = 1000 * (time.perf_counter() - start)
        store = MemoryStore(1 << 30)
        _, keep = await timed(store.keep(list(zip(wanted, evidence, strict=True))))
        found, hit = await timed(store.find(wanted))
        check(found, evidence)
        rounds.append({"keys": keys, "memory: keep": keep, "memory: hit": hit})
    return medians(rounds)


async def in_table(url: str) -> dict[str, float]:
    """Step -> milliseconds, of a LayeredStore; `hit` is of one that has nothing in memory."""
    databases = [Database(url), Database(url)]
    upgrade(databases[0])
    stores = [LayeredStore(each, memory_bytes=1 << 30, max_bytes=1 << 40, watch=Unwatched()) for each in databases]
    for store in stores:
        await store.start()
    rounds = [await table_round(stores[0], stores[1], seed) for seed in range(ROUNDS + 1)]
    for store, database in zip(stores, databases, strict=True):
        await store.close()
        database.close()
    return medians(rounds)


async def table_round(writer: LayeredStore, reader: LayeredStore, seed: int) -> dict[str, float]:
    ids, evidence = content(seed)
    wanted = [Wanted(content_keys("model", each), LENGTH, 1) for each in ids]
    _, miss = await timed(reader.find(wanted))
    _, keep = await timed(writer.keep(list(zip(wanted, evidence, strict=True))))
    _, write = await timed(until_written(writer, len(ids) * LENGTH // 64 * (seed + 1)))
    lengths, covered = await timed(reader.covered(wanted))
    found, hit = await timed(reader.find(wanted))
    check(found, evidence)
    assert lengths == [LENGTH] * SEQUENCES
    again, memory = await timed(reader.find(wanted))
    check(again, evidence)
    steps = {"keep": keep, "write": write, "hit in the table": hit, "hit in memory": memory}
    return steps | {"miss": miss, "covered": covered}


async def until_written(store: LayeredStore, blocks: int) -> None:
    while store.blocks < blocks:  # noqa: ASYNC110  # the store has no event for it: nobody else needs to know
        await asyncio.sleep(0.0005)


def content(seed: int) -> tuple[Any, Any]:
    """Ids [64, 1024], evidence [64, 6, 1024]."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 50_000, (SEQUENCES, LENGTH)).astype(np.uint32)
    return ids, rng.random((SEQUENCES, len(SIGNALS), LENGTH), np.float32)


async def timed(call: Awaitable[Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = await call
    return result, 1000 * (time.perf_counter() - start)


def check(found: Any, evidence: Any) -> None:
    assert all(np.array_equal(got[:, 1:], given[:, 1:]) for got, given in zip(found, evidence, strict=True))


def medians(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Over the rounds but the first, which warms up."""
    return {name: round(statistics.median(each[name] for each in rounds[1:]), 2) for name in rounds[0]}


if __name__ == "__main__":
    main()
