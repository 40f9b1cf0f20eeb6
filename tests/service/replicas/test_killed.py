"""kill -9 of a server in the middle of writing: the file stays sound, and what was committed stays there."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx
import numpy as np
import pytest

from replica import Ids, ask, fresh, logprobs, results
from server_forks import SECONDS, Forks
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.store import content_keys

ROUNDS = 100
THREADS, SEQUENCES, LONGEST = 2, 4, 200
"""Those that ask at the same time, and how much each asks for at once."""
OLD = 32
"""Sequences of earlier rounds that every round looks at again."""

ENGINE = FakeEngine()
Rows = dict[tuple[bytes, int, int], bytes]


def opened(file: Path) -> sqlite3.Connection:
    """For reading alone: the next server finds the file as the killed one left it, with its log not worked in."""
    return sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30, isolation_level=None)


def count(file: Path) -> int:
    """How many blocks the file has by its sums."""
    with closing(opened(file)) as connection:
        (blocks,) = connection.execute("SELECT coalesce(sum(blocks), 0) FROM evidence_size").fetchone()
    return int(blocks)


def committed(file: Path) -> Rows:
    """Every block in the file, which is sound: its sums are those of the blocks."""
    with closing(opened(file)) as connection:
        connection.execute("BEGIN")
        found = connection.execute("SELECT key, start, top20, data FROM evidence").fetchall()
        sums = connection.execute("SELECT sum(blocks), sum(bytes) FROM evidence_size").fetchone()
    assert sums == (len(found), sum(len(data) for *_, data in found))
    return {(key, start, top20): data for key, start, top20, data in found}


def press(http: httpx.Client, asked: list[Ids], lengths: random.Random) -> threading.Thread:
    """Ask for new sequences until the server is gone."""

    def work() -> None:
        while True:
            sequences = fresh(SEQUENCES, lengths.randint(2, LONGEST))
            asked.extend(sequences)
            try:
                results(ask(http, sequences))
            except httpx.TransportError:
                return

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def wait_for_more(file: Path, than: int, threads: list[threading.Thread]) -> None:
    """Until the server, of which threads ask, has committed something new."""
    deadline = time.monotonic() + SECONDS
    while count(file) <= than:
        assert time.monotonic() < deadline, "nothing is written"
        assert all(thread.is_alive() for thread in threads)
        time.sleep(0.001)


def whole(ids: Ids, rows: Rows) -> bool:
    """Whether every block of a sequence is in the file."""
    keys = content_keys(ENGINE.info.fingerprint, ids)
    return all((key, int(number == 0), 0) in rows for number, key in enumerate(keys))


def check_answers(http: httpx.Client, sequences: list[Ids], rows: Rows) -> int:
    """How many a server knows that has computed nothing: exactly those whole in the file, and it is right."""
    there = [whole(ids, rows) for ids in sequences]
    truths = asyncio.run(ENGINE.score([Job(ids) for ids in sequences]))
    answers = results(ask(http, sequences, cached_only=True))
    for known, truth, answer in zip(there, truths, answers, strict=True):
        assert (answer.cached is True) == known
        if known:
            assert not isinstance(truth, Exception)
            np.testing.assert_array_equal(logprobs(answer), truth[0])
    return sum(there)


@pytest.mark.slow
def test_nothing_committed_is_lost_and_nothing_is_wrong(tmp_path: Path) -> None:
    """100 rounds on one file, each by a server that takes it up as the last one left it."""
    file, moments = tmp_path / "evidence.db", random.Random(1)
    asked: list[Ids] = []
    rows: Rows = {}
    cached = late = latest = 0
    with Forks(f"sqlite:///{file}", tmp_path / "log") as forks:
        for _ in range(ROUNDS):
            forks.start()
            again = moments.sample(asked[:latest], min(OLD, latest)) + asked[latest:]
            for start in range(0, len(again), 512):
                cached += check_answers(forks.http, again[start : start + 512], rows)
            latest = len(asked)
            threads = [press(forks.http, asked, random.Random(moments.random())) for _ in range(THREADS)]
            wait_for_more(file, len(rows), threads)
            time.sleep(moments.uniform(0, 0.03))
            before = committed(file)
            assert len(before) > len(rows)
            assert before.items() >= rows.items()
            forks.kill()
            for thread in threads:
                thread.join(SECONDS)
                assert not thread.is_alive()
            with closing(opened(file)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            rows = committed(file)
            assert rows.items() >= before.items()
            late += len(rows) > len(before)
        forks.start()
        for start in range(0, len(asked), 512):
            check_answers(forks.http, asked[start : start + 512], rows)
    log = forks.log.read_text()
    assert "Traceback" not in log
    assert '"level": "error"' not in log
    assert cached > 10 * ROUNDS
    assert late > ROUNDS / 10, "the servers were not killed while they wrote"
