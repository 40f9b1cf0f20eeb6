"""The two layers: what outlives the process, what replicas share, what goes first, and that the sums are exact."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import sqlalchemy as sa

from stores import B, Watch, ids, layered, rows_of, truth, wanted
from tokenpriority_service.database.database import Database
from tokenpriority_service.store import BLOCK_OVERHEAD, LayeredStore, Wanted, table, writer

WISHES = [wanted(ids(40 + 61 * seed, seed), 1 + seed, top20=seed % 3 == 0) for seed in range(12)]
LENGTHS = [wish.length for wish in WISHES]


def cost(tokens: int) -> int:
    return 6 * 4 * tokens + BLOCK_OVERHEAD


def use(database: Database, wish: Wanted, at: float) -> None:
    """As if it had been used last at that time."""
    statement = "UPDATE evidence SET used_at = :at WHERE key = :key"
    database.write_now(lambda c: [c.execute(sa.text(statement), {"at": at, "key": key}) for key in wish.keys])


def used_at(database: Database) -> dict[bytes, float]:
    """Key -> when it was used last, as the table knows."""
    rows = database.read_now(lambda c: c.execute(sa.text("SELECT key, used_at FROM evidence")).all())
    return {row.key: row.used_at for row in rows}


def test_what_was_kept_outlives_the_process(database: Database, url: str) -> None:
    with layered(database) as held:
        held.keep(*WISHES)
        size, blocks = held.store.table_bytes, held.store.blocks
    again = Database(url)
    watch = Watch()
    with layered(again, watch=watch) as held:
        assert (held.store.table_bytes, held.store.blocks, held.store.memory_bytes) == (size, blocks, 0)
        assert held.run(held.store.covered(WISHES)) == LENGTHS
        assert (watch.hits, held.store.memory_bytes) == (0, 0), "asking does not load"
        assert [held.known(wish) for wish in WISHES] == LENGTHS
        rows = rows_of(again)
        assert len(rows) == blocks == watch.hits
        assert sum(map(len, rows.values())) + BLOCK_OVERHEAD * blocks == size == held.store.memory_bytes
    again.close()


def test_closing_writes_what_waits(database: Database) -> None:
    """Without `settle`: nothing but `close` waits for the writer."""
    with layered(database) as held:
        held.run(held.store.keep([(wish, truth(wish)) for wish in WISHES]))
    assert len(rows_of(database)) == sum(len(wish.keys) - wish.first for wish in WISHES)


def test_what_is_in_memory_is_not_read_again(database: Database) -> None:
    with layered(database) as held:
        held.keep(*WISHES)
        database.write_now(lambda c: c.execute(sa.text("DELETE FROM evidence")))
        assert [held.known(wish) for wish in WISHES] == LENGTHS
    with layered(database) as held:
        assert [held.known(wish) for wish in WISHES] == [0] * len(WISHES)


def test_a_beginning_from_memory_goes_on_in_the_table(database: Database) -> None:
    long = wanted(ids(4 * B))
    with layered(database) as held:
        held.keep(long)
    with layered(database) as held:
        assert held.known(wanted(ids(4 * B)[: 2 * B])) == 2 * B
        assert held.known(long) == 4 * B
    with layered(database, memory_bytes=2 * cost(B)) as held:
        assert held.known(long) == 4 * B
        assert held.store.memory_bytes == cost(B) + cost(B - 1), "the beginning"
        assert held.known(long) == 4 * B


def test_what_one_replica_keeps_another_finds(database: Database, url: str) -> None:
    other = Database(url)
    with layered(database) as one, layered(other) as two:
        one.keep(*WISHES[:6])
        assert [two.known(wish) for wish in WISHES[:6]] == LENGTHS[:6]
        two.keep(*WISHES)
        assert [one.known(wish) for wish in WISHES] == LENGTHS
        assert one.store.blocks <= two.store.blocks == len(rows_of(database))
    other.close()


def test_replicas_that_keep_the_same_at_once_wait_for_nobody_and_count_it_once(database: Database, url: str) -> None:
    """Each keeps everything in an order of its own, under a bound that makes all of them evict meanwhile."""
    wishes = [wanted(ids(150, seed)) for seed in range(60)]
    databases = [Database(url) for _ in range(4)]
    watches = [Watch() for _ in databases]
    bound = 90 * cost(B)

    def replica(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(wishes))
        with layered(databases[number], memory_bytes=0, max_bytes=bound, watch=watches[number]) as held:
            for first in range(0, len(wishes), 12):
                some = [wishes[each] for each in order[first : first + 12]]
                held.keep(*some)
                assert all(held.right(wish) in (0, B, 2 * B, 150) for wish in some)

    threads = [threading.Thread(target=replica, args=(number,)) for number in range(len(databases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert [watch.failures for watch in watches] == [[]] * len(watches)
    rows = rows_of(database)
    assert 0 < sum(len(data) + BLOCK_OVERHEAD for data in rows.values()) <= bound
    for each in databases:
        each.close()


def test_the_table_keeps_to_its_bytes_and_the_least_recently_used_goes_first(database: Database) -> None:
    wishes = [wanted(ids(B, seed)) for seed in range(41)]
    bound = 40 * cost(B - 1)
    with layered(database, memory_bytes=0, max_bytes=bound) as held:
        held.keep(*wishes[:40])
        assert held.store.blocks == 40
        for seed, wish in enumerate(wishes[:40]):
            use(database, wish, float(100 - seed))
        held.keep(wishes[40])
        known = [held.known(wish) for wish in wishes]
        assert known == [B] * 37 + [0] * 3 + [B]
        assert writer.KEPT_SHARE * bound - cost(B) < held.store.table_bytes <= writer.KEPT_SHARE * bound
    assert len(rows_of(database)) == 38


def test_of_one_sequence_the_end_goes_first(database: Database) -> None:
    long = wanted(ids(40 * B))
    with layered(database, memory_bytes=0) as held:
        held.keep(long)
        use(database, long, 5.0)
    with layered(database, memory_bytes=0, max_bytes=20 * cost(B)) as held:
        held.run(asyncio.sleep(0))
        held.settle()
        assert held.known(long) == 19 * B
    assert len(rows_of(database)) == 19


def test_large_evictions_go_in_steps(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "EVICT_BLOCKS", 7)
    with layered(database, memory_bytes=0) as held:
        held.keep(wanted(ids(100 * B)))
    with layered(database, memory_bytes=0, max_bytes=10 * cost(B)) as held:
        held.keep(wanted(ids(B, 1)))
        assert held.store.blocks == 9
        assert held.known(wanted(ids(B, 1))) == B
    assert len(rows_of(database)) == 9


@pytest.mark.parametrize("memory_bytes", [0, 1 << 26])
def test_a_hit_counts_as_use_in_coarse_steps(database: Database, memory_bytes: int) -> None:
    one, two, three = (wanted(ids(3 * B, seed)) for seed in (1, 2, 3))
    with layered(database, memory_bytes=memory_bytes) as held:
        held.keep(one, two, three)
        for wish in (one, two, three):
            use(database, wish, 5.0)
        held.known(two)
        held.run(held.store.covered([three]))
    used = used_at(database)
    assert all(used[key] > 1e9 for key in two.keys)
    assert all(used[key] == 5.0 for key in (*one.keys, *three.keys))
    recent = {key: at - writer.TOUCH_SECONDS / 2 for key, at in used.items()}
    use(database, two, recent[two.key])
    with layered(database, memory_bytes=memory_bytes) as held:
        held.known(two)
    again = used_at(database)
    assert {again[key] for key in two.keys} == {recent[two.key]}, "used a moment ago already"


def test_no_bytes_keep_nothing(database: Database) -> None:
    watch = Watch()
    with layered(database, max_bytes=0, memory_bytes=0, watch=watch) as held:
        held.keep(*WISHES)
        assert [held.known(wish) for wish in WISHES] == [0] * len(WISHES)
    with layered(database, max_bytes=0, watch=watch) as held:
        held.keep(*WISHES)
        assert [held.known(wish) for wish in WISHES] == LENGTHS, "memory alone"
    assert rows_of(database) == {}
    assert watch.failures == []


def test_a_table_of_no_bytes_is_emptied(database: Database) -> None:
    with layered(database) as held:
        held.keep(*WISHES)
    with layered(database, max_bytes=0) as held:
        held.run(asyncio.sleep(0))
        held.settle()
    assert rows_of(database) == {}


def test_hits_and_misses_are_told_in_blocks(database: Database) -> None:
    watch = Watch()
    with layered(database, watch=watch) as held:
        held.keep(wanted(ids(3 * B + 1)))
        held.run(held.store.find([wanted(ids(3 * B + 1)), wanted(ids(B, 5)), wanted(ids(3 * B + 1), 2 * B)]))
    assert (watch.hits, watch.missed) == (4 + 2, 1)


def test_who_keeps_faster_than_is_written_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAITING_BYTES", 20 * 6 * 4 * B)
    wishes = [wanted(ids(4 * B, seed)) for seed in range(50)]
    watch = Watch()
    with layered(database, watch=watch) as held:
        store: LayeredStore = held.store
        most = 0

        async def keep(wish: Wanted) -> None:
            nonlocal most
            await store.keep([(wish, truth(wish))])
            most = max(most, store._writer._waiting_bytes)

        async def all_at_once() -> None:
            await asyncio.gather(*map(keep, wishes))

        held.run(all_at_once())
        assert most <= writer.WAITING_BYTES
    assert len(rows_of(database)) == 200
    assert watch.failures == []


@pytest.mark.parametrize("memory_bytes", [0, 1 << 26])
def test_many_finds_and_keeps_at_once(database: Database, memory_bytes: int) -> None:
    wishes = [wanted(ids(300, seed)) for seed in range(30)]
    with layered(database, memory_bytes=memory_bytes) as held:
        store: LayeredStore = held.store

        async def one(wish: Wanted) -> int:
            await store.keep([(wish, truth(wish))])
            rows = (await store.find([wish]))[0]
            assert rows.tobytes() == truth(wish, rows.shape[1]).tobytes()
            return int(rows.shape[1])

        async def together() -> list[int]:
            return list(await asyncio.gather(*map(one, wishes)))

        known = held.run(together())
        held.settle()
        assert [held.known(wish) for wish in wishes] == [300] * len(wishes)
        assert memory_bytes == 0 or known == [300] * len(wishes)
