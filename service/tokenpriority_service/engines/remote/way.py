"""The two ways of asking a vLLM server for evidence, as one interface.

Knows what a way is and which there are. Leaves requests and answers to `completions` and `pooling`.
"""

from __future__ import annotations

from typing import Protocol

from tokenpriority_service.engines.engine import Ids, Job, Rows
from tokenpriority_service.engines.remote import completions, pooling
from tokenpriority_service.engines.remote.replica import Answer


class Way(Protocol):
    """A module that asks for evidence, one of `WAYS`."""

    ROUTE: str
    SIGNALS: tuple[str, ...]

    def body(self, model: str, ids: Ids, /) -> bytes:
        """The JSON of the request for a prompt."""

    def rows(self, answer: Answer, job: Job, /) -> Rows:
        """[6, T] of a job. Raises EngineFault if the answer is not wholly sound."""


WAYS: dict[str, Way] = {completions.NAME: completions, pooling.NAME: pooling}
"""Name -> module."""
