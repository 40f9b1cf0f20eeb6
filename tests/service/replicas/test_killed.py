"""kill -9 of a server in the middle of scoring: the file stays sound, and what was committed stays there."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from replica import Ids, Replica, ask, configured, fresh, logprobs, results, truth

ROUNDS = 3
Rows = dict[tuple[bytes, int, int], bytes]


def committed(file: Path) -> Rows:
    """Every block of evidence in the file, as another process sees it."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30) as connection:
        found = connection.execute("SELECT key, start, top20, data FROM evidence").fetchall()
    connection.close()
    return {(key, start, top20): data for key, start, top20, data in found}


def press(replica: Replica, answered: list[Ids]) -> threading.Thread:
    """Ask for new sequences until the server is gone."""

    def work() -> None:
        with httpx.Client(base_url=replica.url, timeout=30, trust_env=False) as http:
            while True:
                sequences = fresh(8, 130)
                try:
                    results(ask(http, sequences))
                except httpx.TransportError:
                    return
                answered.extend(sequences)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def stored(replica: Replica, sequences: list[Ids]) -> int:
    """How many the server knows, each of which must be right."""
    count = 0
    for start in range(0, len(sequences), 512):
        part = sequences[start : start + 512]
        for ids, result in zip(part, results(replica.score(part, cached_only=True)), strict=True):
            if result.cached is True:
                count += 1
                np.testing.assert_array_equal(logprobs(result), truth(ids))
    return count


def test_nothing_committed_is_lost_and_nothing_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "evidence.db"
    config = configured(tmp_path, f"sqlite:///{file}")
    answered: list[Ids] = []
    before: Rows = {}
    for _ in range(ROUNDS):
        with Replica(config) as replica:
            assert stored(replica, answered) >= len(before) // 16
            threads = [press(replica, answered) for _ in range(3)]
            time.sleep(random.uniform(0.1, 0.6))
            before = committed(file)
            replica.kill()
            for thread in threads:
                thread.join(30)
                assert not thread.is_alive()
        after = committed(file)
        assert {place: after.get(place) for place in before} == before
    with Replica(config) as replica:
        assert stored(replica, answered) > 0
        assert replica.log.count("Traceback") == 0
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()
