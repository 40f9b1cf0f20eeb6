"""PostgreSQL goes away and comes back under load: clear errors meanwhile, and nothing to do afterwards."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from postgres import Postgres
from replica import Ids, Replica, ask, error_type, fresh, logprobs, results, run, truth


class Load(threading.Thread):
    """Asks one replica again and again, for something known and something new, until told to stop."""

    def __init__(self, replica: Replica, key: str, known: Ids) -> None:
        super().__init__(daemon=True)
        self.answers: list[tuple[float, float, int, str]] = []
        """When asked, when answered, status, type of error."""
        self.wrong: list[str] = []
        self.stop = threading.Event()
        self._replica, self._key, self._known = replica, key, known

    def run(self) -> None:
        """Everything that is not a clear answer goes into `wrong`."""
        with httpx.Client(base_url=self._replica.url, timeout=30, trust_env=False) as http:
            while not self.stop.is_set():
                try:
                    self._ask(http)
                except Exception as error:
                    self.wrong.append(f"{type(error).__name__}: {error}")

    def _ask(self, http: httpx.Client) -> None:
        new = fresh(1, 40)[0]
        asked = time.monotonic()
        answer = ask(http, [self._known, new], self._key)
        kind = "" if answer.status_code == 200 else error_type(answer)
        self.answers.append((asked, time.monotonic(), answer.status_code, kind))
        if answer.status_code == 200:
            for ids, result in zip((self._known, new), results(answer), strict=True):
                np.testing.assert_array_equal(logprobs(result), truth(ids))
        else:
            assert int(answer.headers["retry-after"]) >= 1
            time.sleep(0.02)


def test_clear_errors_while_it_is_away_and_recovery_without_help(
    postgres: Postgres, shared: Path, replicas: tuple[Replica, Replica]
) -> None:
    key = run(shared, "keys", "create", "--team", "patient")
    run(shared, "teams", "set", "patient", "--tokens-per-minute", "1000000000")  # every charge asks the database
    (known,) = fresh(1, 200)
    before = [logprobs(result) for result in results(replicas[0].score([known], key))]
    loads = [Load(replica, key, known) for replica in replicas * 2]
    for load in loads:
        load.start()
    try:
        time.sleep(0.5)
        postgres.stop(immediate=True)
        gone = time.monotonic()
        time.sleep(1.5)
        returns = time.monotonic()
        postgres.start()
        back = time.monotonic()
        while not all(any(at > back and status == 200 for at, _, status, _ in load.answers) for load in loads):
            assert time.monotonic() < back + 40, "never recovered"
            time.sleep(0.05)
        recovered = time.monotonic()
        time.sleep(0.5)
    finally:
        for load in loads:
            load.stop.set()
        for load in loads:
            load.join(40)
    assert not any(load.is_alive() for load in loads)
    assert [wrong for load in loads for wrong in load.wrong] == []
    answers = [answer for load in loads for answer in load.answers]
    assert {(status, kind) for _, _, status, kind in answers} == {(200, ""), (503, "unavailable")}
    assert {status for asked, at, status, _ in answers if gone < asked and at < returns} == {503}
    assert {status for asked, _, status, _ in answers if recovered < asked} == {200}
    for replica in replicas:
        assert replica.process.poll() is None
        errors = [line for line in map(json.loads, replica.log.splitlines()) if line["level"] == "error"]
        # The pool tells so of each connection that ended under it.
        assert {line["logger"] for line in errors} <= {"sqlalchemy.pool.impl.QueuePool"}, errors
        after = [logprobs(result) for result in results(replica.score([known], key))]
        np.testing.assert_array_equal(after, before)
