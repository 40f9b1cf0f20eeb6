"""Engines that fail or give less than others: what is told, of which sequences, and what is kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenpriority.errors import EngineFault


def spoilers() -> dict[str, Callable[[Any, Any], Any]]:
    def nan(job: Any, rows: Any) -> Any:
        out = rows.copy()
        out[1, -1] = np.nan
        return out

    return {
        "entropy is nan at token 3": nan,
        "got float32[6, 3]": lambda job, rows: rows[:, :-1],
        "got float32[5, 4]": lambda job, rows: rows[:-1],
        "got float64[6, 4]": lambda job, rows: rows.astype(np.float64),
        "got NoneType": lambda job, rows: None,
        "the engine failed: RuntimeError": lambda job, rows: RuntimeError("secret"),
        "broken by itself": lambda job, rows: EngineFault("broken by itself"),
    }


@pytest.mark.parametrize("message", spoilers())
def test_an_engines_fault_is_its_items_and_is_not_kept(serve: Any, probe: Any, message: str) -> None:
    spoil = spoilers()[message]
    probe.spoil = lambda job, rows: spoil(job, rows) if job.token_ids[0] == 7 else rows
    with serve({"reference": probe}) as server:
        good, bad = server.score({"token_ids": [1, 2, 3, 4]}, {"id": "bad", "token_ids": [7, 2, 3, 4]})
        assert good["priorities"] == [0, 1, 1, 1]
        assert set(bad) == {"id", "error"}
        assert bad["error"]["type"] == "engine_fault"
        assert message in bad["error"]["message"]
        assert "secret" not in str(bad)
        every = server.post({"sequences": [{"token_ids": [7, 2, 3, 4]}] * 2})
        assert every.status_code == 503
        assert every.json()["error"]["type"] == "engine_fault"
        assert message in every.json()["error"]["message"]
        assert int(every.headers["retry-after"]) >= 1
        probe.spoil = None
        healed = server.score({"token_ids": [7, 2, 3, 4]})[0]
        assert (healed["cached"], healed["priorities"]) == (False, [0, 1, 1, 1])


def test_an_engine_that_raises_or_answers_too_few_fails_its_call_alone(serve: Any, probe: Any) -> None:
    class Breaking(type(probe)):  # type: ignore[misc]
        mode = "raise"

        async def score(self, jobs: Any) -> Any:
            if self.mode == "raise":
                raise RuntimeError("secret")
            rows = await super().score(jobs)
            return rows[:-1] if self.mode == "short" else rows

    engine = Breaking(probe.inner)
    with serve({"reference": engine}) as server:
        for mode, words in (("raise", "RuntimeError"), ("short", "0 of 1 jobs")):
            engine.mode = mode
            response = server.post({"sequences": [{"token_ids": [1, 2]}]})
            assert (response.status_code, response.json()["error"]["type"]) == (503, "engine_fault")
            assert words in response.json()["error"]["message"]
            assert "secret" not in response.text
        engine.mode = "whole"
        assert server.score({"token_ids": [1, 2]})[0]["priorities"] == [0, 1]
        assert server.service.admission.queued_tokens == 0


def test_a_signal_the_engine_lacks(serve: Any, probe: Any) -> None:
    class LogprobsOnly(type(probe)):  # type: ignore[misc]
        @property
        def info(self) -> Any:
            return dataclasses.replace(self.inner.info, signals=("logprob",))

        async def score(self, jobs: Any) -> Any:
            rows = await super().score(jobs)
            for each in rows:
                each[1:] = np.nan
            return rows

    with serve({"reference": LogprobsOnly(probe.inner)}) as server:
        priorities = server.score({"token_ids": list(range(40))}, method={"name": "prift_prob"})[0]["priorities"]
        assert max(priorities) > 0
        refused = server.post({"sequences": [{"token_ids": [1, 2]}], "method": {"name": "prift_mass"}})
        assert refused.status_code == 422
        assert "mass_above" in refused.json()["error"]["message"]
        response = server.post({"sequences": [{"token_ids": [1, 2]}], "signals": ["rank"]})
        assert response.status_code == 422
        assert "signals[0]: model 'reference' gives logprob, got 'rank'" in response.json()["error"]["message"]
