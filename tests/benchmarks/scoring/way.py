"""One way of scoring, as the benchmark runs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Way:
    """`score` takes sequences of ids and comes back when all are scored; `worker` is the process that computes."""

    FAST: ClassVar[str] = "our vLLM engine, in process"
    HTTP: ClassVar[str] = "our HTTP service over it, 8 clients"
    DICT: ClassVar[str] = "vLLM prompt_logprobs=0, in process"
    FLAT: ClassVar[str] = "vLLM flat_logprobs, not detokenised, in process"
    SERVE: ClassVar[str] = "vllm serve /v1/completions, 8 clients"
    TORCH: ClassVar[str] = "our torch engine, in process"
    PLAIN: ClassVar[str] = "transformers, padded, target logprob only"

    name: str
    score: Callable[[list[list[int]]], None]
    worker: int | None = None

    def time(self, batch: list[list[int]]) -> float:
        """Seconds to score a batch."""
        start = time.perf_counter()
        self.score(batch)
        return time.perf_counter() - start
