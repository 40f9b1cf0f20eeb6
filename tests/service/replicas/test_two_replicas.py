"""Two processes on one PostgreSQL database are one server: keys, quotas, usage and evidence."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np

from replica import Replica, ask, error_type, fresh, headers, logprobs, results, run, truth

Two = tuple[Replica, Replica]


def test_a_key_holds_and_ends_on_both_at_once(shared: Path, replicas: Two) -> None:
    key = run(shared, "keys", "create", "--team", "comes-and-goes")
    for replica in replicas:
        assert replica.score(fresh(1, 8), key).status_code == 200
    run(shared, "keys", "revoke", "--team", "comes-and-goes")
    for replica in replicas:
        refused = replica.score(fresh(1, 8), key)
        assert (refused.status_code, error_type(refused)) == (401, "unauthorized")


def test_tokens_per_minute_are_exact_over_both(shared: Path, replicas: Two) -> None:
    """6,000 a minute are 6,000 at once and 100 a second from then on, whichever process is asked."""
    capacity, size = 6000, 100
    key = run(shared, "keys", "create", "--team", "limited")
    run(shared, "teams", "set", "limited", "--tokens-per-minute", str(capacity))

    def press(replica: Replica) -> list[httpx.Response]:
        with httpx.Client(base_url=replica.url, timeout=60, trust_env=False) as http:
            return [ask(http, fresh(1, size), key) for _ in range(25)]

    began = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        answers = [answer for each in threads.map(press, replicas * 4) for answer in each]
    took = time.monotonic() - began
    scored = sum(size for answer in answers if answer.status_code == 200)
    refused = [answer for answer in answers if answer.status_code != 200]
    assert capacity <= scored <= capacity + size * took
    assert len(refused) >= 60
    assert {(answer.status_code, error_type(answer)) for answer in refused} == {(429, "overloaded")}
    assert all(1 <= int(answer.headers["retry-after"]) <= 2 for answer in refused)
    # Waiting as told is enough, on either.
    time.sleep(int(refused[-1].headers["retry-after"]))
    assert replicas[1].score(fresh(1, size), key).status_code == 200


def test_usage_is_summed_over_both(shared: Path, replicas: Two) -> None:
    key = run(shared, "keys", "create", "--team", "counted")
    sequences = fresh(3, 50)
    answers = [replica.score(sequences, key) for replica in (*replicas, *replicas)]
    cached = sum(int(answer.headers["x-tokenpriority-cached-tokens"]) for answer in answers)
    assert cached >= 300  # the second time each knew them
    deadline = time.monotonic() + 30
    expected = {"tokens": 600, "cached_tokens": cached, "requests": 4, "rejections": 0}
    for replica in replicas:
        while True:
            entries = replica.get("/v1/usage", key)["usage"]
            assert {entry["team"] for entry in entries} <= {"counted"}
            summed = {name: sum(entry[name] for entry in entries) for name in expected}
            if summed == expected:
                break
            assert time.monotonic() < deadline, summed
            time.sleep(0.1)


def test_what_one_scored_the_other_knows(shared: Path, replicas: Two) -> None:
    key = run(shared, "keys", "create", "--team", "sharing")
    a, b = replicas
    sequences = fresh(4, 300)
    first = results(a.score(sequences, key))
    assert not any(result.cached for result in first)
    deadline = time.monotonic() + 30
    while (answer := b.score(sequences, key, cached_only=True)).status_code != 200 or any(
        result.cached is not True for result in results(answer)
    ):
        assert time.monotonic() < deadline, "never written"
        time.sleep(0.05)
    for ids, ours, theirs in zip(sequences, first, results(answer), strict=True):
        assert logprobs(ours).tobytes() == logprobs(theirs).tobytes()
        assert ours.priorities == theirs.priorities
        np.testing.assert_array_equal(logprobs(theirs), truth(ids))


def test_a_key_of_one_team_sees_no_other_on_either(shared: Path, replicas: Two) -> None:
    key = run(shared, "keys", "create", "--team", "curious")
    for replica in replicas:
        answer = replica.http.get("/v1/usage", params={"team": "counted"}, headers=headers(key))
        assert answer.status_code == 403
