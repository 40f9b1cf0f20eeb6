"""Replicas, each a process with its own database connections, that charge one team at once: neither limit is passed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tokenpriority_service.database.database import Database
from tokenpriority_service.teams.caller import Caller, Limits
from tokenpriority_service.teams.quota import Quota

REPLICA = """
import asyncio, json, random, sys, time
from tokenpriority.errors import Overloaded
from tokenpriority_service.database.database import Database
from tokenpriority_service.teams.caller import Caller, Limits
from tokenpriority_service.teams.quota import Quota

url, name, per_minute, at_once, goal = sys.argv[1:]
limits = Limits(1.0, *(None if each == "-" else int(each) for each in (per_minute, at_once)))
draw = random.Random(name)
granted, refused = [], []

def done():  # granted its goal of tokens, and it met the limit
    return sum(tokens for tokens, _, _ in granted) >= int(goal) and refused

async def client(quota, until):
    while not done():
        assert time.monotonic() < until, (len(granted), len(refused))
        tokens = draw.randint(1, 200)
        try:
            charge = await quota.charge(Caller("alpha", frozenset(), limits), tokens)
        except Overloaded as error:
            if (" per minute" if limits.tokens_per_minute else " in flight") in str(error):
                refused.append(tokens)
            continue
        began = time.monotonic()
        back = draw.choice((0, 0, tokens // 2))
        charge.refund(back)
        await asyncio.sleep(draw.random() / 50)
        granted.append((tokens - back, began, time.monotonic()))
        charge.close()

async def main():
    quota = Quota(Database(url), name)
    quota.start()
    print("ready", flush=True)
    sys.stdin.readline()
    if goal == "hold":
        await quota.charge(Caller("alpha", frozenset(), limits), limits.concurrent_tokens)
        print("held", flush=True)
        await asyncio.sleep(3600)
    until = time.monotonic() + 90
    await asyncio.gather(*(client(quota, until) for _ in range(8)))
    await quota.close()
    print(json.dumps(granted))

asyncio.run(main())
"""


@dataclass
class Grant:
    tokens: int
    began: float
    ended: float


@contextmanager
def replicas(url: str, *arguments: str, count: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that are ready, and begin when told."""
    command = [sys.executable, "-c", REPLICA, url]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    made = [
        subprocess.Popen(
            [*command, f"replica-{number}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(count)
    ]
    try:
        for each in made:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        yield made
    finally:
        for each in made:
            each.kill()
            each.communicate()


def charged(url: str, limits: Limits, goal: int, count: int = 2) -> list[Grant]:
    """What replicas that charge as fast as they can were granted: each at least `goal` tokens, and refused some."""
    given = ["-" if each is None else str(each) for each in (limits.tokens_per_minute, limits.concurrent_tokens)]
    with replicas(url, *given, str(goal), count=count) as running:
        for each in running:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        grants = []
        for each in running:
            answer, _ = each.communicate(timeout=120)
            assert each.returncode == 0
            grants += [Grant(*grant) for grant in json.loads(answer)]
    return grants


def test_no_token_is_granted_twice(url: str, connect: Callable[[], Database]) -> None:
    team = Limits(1.0, 6000, 500)
    began = time.time()
    granted = sum(grant.tokens for grant in charged(url, team, 3100))
    assert 6200 <= granted <= 6000 + (time.time() - began) * 100, "they asked for more than there was"
    after = asyncio.run(Quota(connect(), "after").remaining(Caller("alpha", frozenset(), team)))
    assert after.in_flight_tokens == 0
    assert after.tokens_remaining is not None
    assert 0 <= after.tokens_remaining <= 6000 - granted + (time.time() - began) * 100


def test_never_more_in_flight_than_allowed(url: str) -> None:
    grants = charged(url, Limits(1.0, None, 500), 5000)
    events = sorted([(g.began, g.tokens) for g in grants] + [(g.ended, -g.tokens) for g in grants])
    held = greatest = 0
    for _, tokens in events:
        held += tokens
        greatest = max(greatest, held)
    assert 200 < greatest <= 500, "several at once, of at most 200 each"


def test_killed_with_tokens_in_flight(sqlite: Database) -> None:

    now = time.time()
    team = Caller("alpha", frozenset(), Limits(1.0, None, 100))
    with replicas(sqlite.url.render_as_string(False), "-", "100", "hold", count=1) as [victim]:
        assert victim.stdin is not None
        assert victim.stdout is not None
        victim.stdin.write("go\n")
        victim.stdin.flush()
        assert victim.stdout.readline() == "held\n"
        victim.send_signal(signal.SIGKILL)
        victim.wait()

    async def run() -> None:
        survivor = Quota(sqlite, "survivor", lambda: now)
        with pytest.raises(Exception, match="100 tokens in flight of at most 100"):
            await survivor.charge(team, 1)
        later = Quota(sqlite, "survivor", lambda: time.time() + 30)
        assert (await later.charge(team, 100)).tokens == 100

    asyncio.run(run())
