"""Beginnings that the store knows are taken from it: the same answers, and no position computed twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenpriority import wire
from tokenpriority_service.configuration.settings import Settings, StoreSettings
from tokenpriority_service.engines import Job, load_engine
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.service import Service
from tokenpriority_service.store import BLOCK_TOKENS
from tokenpriority_service.teams.caller import OPEN
from tokenpriority_service.web.record import Record

B = BLOCK_TOKENS
SIGNALS = ["entropy", "rank", "mass_above"]


class Direct:
    """A service without HTTP, and a memory of which positions its engine has computed."""

    def __init__(self, probe: Any, max_bytes: int) -> None:
        self.probe = probe
        stored = StoreSettings(memory_bytes=max_bytes, max_bytes=0)
        self.service = Service(Settings(store=stored), {"reference": probe}, load_engine)

    async def ask(self, sequences: list[dict[str, Any]], top20: bool = False) -> Any:
        body = {"sequences": sequences, "signals": [*SIGNALS, *(["entropy_top20"] if top20 else [])]}
        answer = await self.service.priorities(wire.encode(body), wire.MSGPACK, wire.MSGPACK, OPEN, Record("x"))
        return wire.decode(answer, dict)


def blocks(job: Job) -> Iterator[tuple[bytes, int]]:
    """All tokens up to the end of each block that a job computes, and from where in the block it does."""
    for start in range(job.score_from // B * B, len(job.token_ids), B):
        yield job.token_ids[: start + B].tobytes(), max(start, job.score_from)


def pieces() -> st.SearchStrategy[dict[str, Any]]:
    """Requests of sequences built of a few common pieces, so that beginnings are shared at and off block edges."""
    parts = [np.random.default_rng(seed).integers(0, 500, size).tolist() for seed, size in ((0, B), (1, 90), (2, 31))]
    sequence = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.integers(0, 300), st.booleans()).map(
        lambda drawn: ([token for n in drawn[0] for token in parts[n]], drawn[1], drawn[2])
    )
    return sequence.map(lambda s: {"token_ids": s[0], "score_from": min(s[1], len(s[0])) if s[2] else 0})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.lists(pieces(), min_size=1, max_size=4), st.booleans()), min_size=1, max_size=8))
def test_answers_are_those_of_a_server_without_a_store(make_probe: Callable[..., Any], requests: list[Any]) -> None:
    async def scenario() -> None:
        stored, plain = (Direct(make_probe(FakeEngine()), size) for size in (10**8, 0))
        known: dict[bytes, tuple[int, bool]] = {}
        async with stored.service.running(), plain.service.running():
            for each in (stored, plain):
                while each.service.models.unready:  # noqa: ASYNC110  # it loads in a thread
                    await asyncio.sleep(0.001)
            await compare(stored, plain, known)

    async def compare(stored: Direct, plain: Direct, known: dict[bytes, tuple[int, bool]]) -> None:
        for sequences, top20 in requests:
            before = len(stored.probe.jobs)
            one, two = [await each.ask(sequences, top20) for each in (stored, plain)]
            for got, expected in zip(one["results"], two["results"], strict=True):
                got.pop("cached"), expected.pop("cached")
                assert got == expected
            jobs = stored.probe.jobs[before:]
            for job in jobs:
                block, start = next(blocks(job))
                was, wide = known.get(block, (10**9, False))
                assert not (was <= start and wide >= job.top20), "its first position was known"
            for job in jobs:
                for block, start in blocks(job):
                    was, wide = known.get(block, (10**9, False))
                    if not (was <= start and wide >= job.top20):
                        known[block] = start, job.top20

    asyncio.run(scenario())


def test_turns_of_a_conversation_pay_for_what_is_new(serve: Any, probe: Any) -> None:
    turns = [np.random.default_rng(seed).integers(0, 500, 150).tolist() for seed in range(4)]
    with serve({"reference": probe}) as server:
        for count in range(1, 5):
            talk = [token for turn in turns[:count] for token in turn]
            answer = server.post({"sequences": [{"token_ids": talk}]}).json()
            before = 150 * (count - 1) // B * B
            assert probe.jobs[-1].score_from == max(1, before)
            assert (answer["usage"]["cached_tokens"], answer["results"][0]["cached"]) == (before, False)
            assert None not in answer["results"][0]["logprobs"][1:]
        again = server.post({"sequences": [{"token_ids": talk}]}).json()
        assert (again["usage"]["cached_tokens"], again["results"][0]["cached"]) == (600, True)
        assert len(probe.jobs) == 4


def test_a_fault_of_the_rest_fails_the_sequence_and_keeps_its_beginning(serve: Any, probe: Any) -> None:
    ids = np.random.default_rng(0).integers(0, 500, 3 * B).tolist()
    with serve({"reference": probe}) as server:
        whole = server.score({"token_ids": ids[:B]})[0]["logprobs"]
        probe.spoil = lambda job, rows: RuntimeError("gone")
        assert server.post({"sequences": [{"token_ids": ids}]}).status_code == 503
        probe.spoil = None
        result = server.score({"token_ids": ids})[0]
        assert (result["cached"], result["logprobs"][:B]) == (False, whole)
        assert [job.score_from for job in probe.jobs] == [1, B, B]


@pytest.mark.parametrize("first", [B + 5, 1])
def test_a_known_beginning_meets_work_in_flight(
    serve: Any, probe: Any, wait_until: Callable[..., None], first: int
) -> None:
    """The rest is shared with work that covers it, and computed beside work that does not."""
    from concurrent.futures import ThreadPoolExecutor

    ids = np.random.default_rng(0).integers(0, 500, 3 * B).tolist()
    with (
        serve({"reference": FakeEngine()}) as plain,
        serve({"reference": probe}) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        server.score({"token_ids": ids[:B]})
        probe.release.clear()
        body = {"token_ids": ids, "score_from": first}
        one = pool.submit(server.score, body)
        wait_until(lambda: len(probe.jobs) == 2, "the first work")
        two = pool.submit(server.score, {"token_ids": ids})
        joined = first == 1  # its rest starts at the block's end too
        dispatcher = server.service.models.get("reference").dispatcher
        wait_until(
            lambda: (sum(w.waiters for w in dispatcher._pending.values()) == 2) if joined else len(probe.jobs) == 3,
            "the second request",
        )
        probe.release.set()
        for future, asked in ((one, body), (two, {"token_ids": ids})):
            assert future.result()[0]["logprobs"] == plain.score(asked)[0]["logprobs"]
        assert [job.score_from for job in probe.jobs] == ([1, B] if joined else [1, first, B])


def test_optional_signals_are_served_on_request(serve: Any, probe: Any) -> None:
    ids = list(range(100))
    with serve({"reference": probe}) as server:
        assert "entropy_top20" in server.http.get("/v1/models").json()["models"][0]["signals"]

        def ask(*signals: str) -> tuple[Any, bool]:
            result = server.score({"token_ids": ids}, signals=list(signals))[0]
            return result["signals"], result["cached"]

        assert ask("entropy")[1] is False
        assert [job.top20 for job in probe.jobs] == [False]
        top, cached = ask("entropy_top20", "entropy")
        assert not cached
        assert [x is None for x in top["entropy_top20"]] == [i == 0 for i in range(100)]
        assert all(x <= np.log(20) for x in top["entropy_top20"][1:])
        assert [job.top20 for job in probe.jobs] == [False, True]
        assert ask("entropy_top20") == ({"entropy_top20": top["entropy_top20"]}, True)
        assert ask("entropy") == ({"entropy": top["entropy"]}, True)
