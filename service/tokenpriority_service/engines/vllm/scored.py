"""One model of an engine core, the base or an adapter, as the server sees an engine.

Knows what becomes of a job, whatever happens to it. Knows nothing of how the core came to be.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenpriority.errors import ApiError, EngineFault
from tokenpriority_service.engines.contract import filled_rows, score_wanted
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows
from tokenpriority_service.engines.vllm.core import Core
from tokenpriority_service.engines.vllm.fast_path import FastPath
from tokenpriority_service.engines.vllm.prompt_logprobs import PromptLogprobs
from tokenpriority_service.engines.vllm.wish import EXHAUSTED, Wish

_numbers = itertools.count()


class ScoredModel:
    """An Engine on a core it does not own; `lora` is vLLM's request for the adapter, None for the base."""

    def __init__(
        self, core: Core, path: FastPath | PromptLogprobs, info: EngineInfo, tokenizer: Any | None, lora: Any = None
    ) -> None:
        self._core = core
        self._path = path
        self._info = info
        self._tokenizer = tokenizer
        self._lora = lora

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""
        return self._info

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer beside the weights, or None if there is none."""
        return self._tokenizer

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """None of its own."""
        return {}

    @property
    def fault(self) -> str | None:
        """Why it cannot score now, or None."""
        return self._core.fault

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order, see `Engine.score`; vLLM batches the jobs of all calls together."""
        return await score_wanted(jobs, self._info, self._run)

    async def close(self) -> None:
        """Closed with its core."""

    async def _run(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        async def work(llm: Any) -> list[Rows | Exception]:
            return await asyncio.gather(*(self._one(llm, job) for job in jobs))

        try:
            return await self._core.call(work) if jobs else []
        except ApiError as error:
            return [error] * len(jobs)

    async def _one(self, llm: Any, job: Job) -> Rows | Exception:
        wish, request = Wish(job.score_from, job.top20), f"score-{next(_numbers)}"
        priority = 0 if job.urgent else 1  # vLLM begins with the lowest
        try:
            evidence = await self._path.rows(llm, job.token_ids, wish, request, self._lora, job.salt, priority)
            if (evidence == EXHAUSTED).any():
                return EngineFault(
                    f"the engine had no memory for the logits of this sequence of {len(job.token_ids)} tokens; "
                    "a smaller kv_cache_bytes or memory_share leaves it more"
                )
            return filled_rows(job, np.asarray(evidence), [name for name in job.rows if name in self._path.signals])
        except EngineFault as fault:
            return fault
        except Exception as error:
            return self._core.explain(error)
