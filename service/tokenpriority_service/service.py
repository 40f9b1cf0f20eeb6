"""The parts of one running server, put together.

Knows which parts there are and how a request goes through them. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from tokenpriority.schema import Limits
from tokenpriority_service import answer
from tokenpriority_service.access import Gate
from tokenpriority_service.admission import Admission
from tokenpriority_service.auth import Teams
from tokenpriority_service.door import Door
from tokenpriority_service.engines import Engine, Load
from tokenpriority_service.models import Models
from tokenpriority_service.record import Record
from tokenpriority_service.scoring import gather, score
from tokenpriority_service.settings import Settings
from tokenpriority_service.store import MemoryStore

T = TypeVar("T")

LOOP_BYTES = 32_768
"""Bodies and answers up to this size are worked on in the event loop (about a millisecond), larger ones in a thread."""


class Service:
    """Models, store, admission, teams and the pipeline over them."""

    def __init__(self, settings: Settings, engines: Mapping[str, Engine], load: Load) -> None:
        self.settings = settings
        self.store = MemoryStore(settings.store.max_bytes)
        self.admission = Admission(settings.server.max_queued_tokens)
        self.models = Models(settings.models, self.store, self.admission, load=load, engines=engines)
        self.teams = Teams(settings.teams)
        self.door = Door(settings.server, self.models)
        self.gate = Gate()

    async def priorities(self, body: bytes, body_type: str, answer_type: str, record: Record) -> bytes:
        """Answer one POST /v1/priorities. Raises the ApiError that fails the request."""
        draft = await _off_loop(len(body) > LOOP_BYTES, lambda: self.door.open(body, body_type))
        request = await _off_loop(draft.has_text or len(body) > LOOP_BYTES, lambda: self.door.check(draft))
        record.tokens = request.tokens
        gathered = await gather(request, self.store, self.admission)
        record.cached_tokens = gathered.cost.cached_tokens
        return await _off_loop(
            # Per token: id, logprob, priority, and each signal, of 4 bytes or more.
            4 * (3 + len(draft.signals)) * request.tokens > LOOP_BYTES,
            lambda: answer.write(request, score(request, gathered), gathered.cost, answer_type),
        )

    def limits(self) -> Limits:
        """What the server takes at once, as GET /v1/limits prints it."""
        server = self.settings.server
        return Limits(
            max_body_bytes=server.max_body_bytes,
            max_sequences=server.max_sequences,
            max_request_tokens=server.max_request_tokens,
            max_queued_tokens=server.max_queued_tokens,
            queued_tokens=self.admission.queued_tokens,
        )


async def _off_loop(large: bool, work: Callable[[], T]) -> T:
    """Run `work` in a thread if it is large, so that other requests get their turns."""
    return await asyncio.to_thread(work) if large else work()
