"""The parts of one running server, put together.

Knows which parts there are and how a request goes through them. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from tokenpriority.errors import Overloaded, TooLarge, Unavailable
from tokenpriority.schema import Limits, TeamLimits
from tokenpriority_service.configuration.settings import Settings
from tokenpriority_service.database.database import Database
from tokenpriority_service.database.upgrade import check, upgrade
from tokenpriority_service.engines import Engine, Load
from tokenpriority_service.models import Models
from tokenpriority_service.requests import answer
from tokenpriority_service.requests.door import Door, Request
from tokenpriority_service.requests.gathering import Gathered, Resources, coverage, gather
from tokenpriority_service.requests.scoring import score
from tokenpriority_service.requests.text_threads import TextThreads
from tokenpriority_service.scheduling.admission import Admission
from tokenpriority_service.scheduling.dispatch import Work
from tokenpriority_service.scheduling.fair_queue import FairQueue
from tokenpriority_service.scheduling.feed import Feed
from tokenpriority_service.store import LayeredStore
from tokenpriority_service.teams.caller import Caller
from tokenpriority_service.teams.charge import Remaining
from tokenpriority_service.teams.directory import Directory
from tokenpriority_service.teams.quota import Quota
from tokenpriority_service.teams.usage import UsageLog
from tokenpriority_service.telemetry.metrics import Metrics, Reason
from tokenpriority_service.telemetry.sources import ServerSources
from tokenpriority_service.telemetry.tracing import open_tracer
from tokenpriority_service.web.access import Gate
from tokenpriority_service.web.record import Record

T = TypeVar("T")

LOOP_BYTES = 32_768
"""Bodies and answers up to this size are worked on in the event loop (about a millisecond), larger ones in a thread."""


class Service:
    """Models, store, teams, admission and the pipeline over them."""

    def __init__(
        self, settings: Settings, engines: Mapping[str, Engine], load: Load, queue: type[FairQueue[Work]] = FairQueue
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tracer = open_tracer(settings.server.traces)
        self.database = Database(settings.database.url)
        kept = settings.store
        self.store = LayeredStore(
            self.database, memory_bytes=kept.memory_bytes, max_bytes=kept.max_bytes, watch=self.metrics
        )
        self.directory = Directory(self.database, settings.teams)
        self.quota = Quota(self.database, replica=uuid.uuid4().hex)
        self.usage = UsageLog(self.database)
        self.admission = Admission(settings.server.max_queued_tokens)
        self._queue = queue
        self.models = Models(settings.models, self._feed, load=load, engines=engines)
        self.door = Door(settings.server, self.models)
        self._text = TextThreads()
        self.gate = Gate()
        self.metrics.observe(ServerSources(self.gate, self.models, self.store))
        self._shared = Resources(self.store, self.admission, self.quota, self.tracer, self._refused)
        self._prepared = False

    def prepare(self) -> None:
        """Bring the tables of an SQLite database up to date; those of a PostgreSQL one must be. Raises as `check`."""
        if not self._prepared:
            (upgrade if self.database.dialect == "sqlite" else check)(self.database)
            self._prepared = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Everything at work: models load in the background, and all is written down at the end."""
        await asyncio.to_thread(self.prepare)
        await self.store.start()
        self.quota.start()
        self.usage.start()
        loading = asyncio.create_task(self.models.start())
        try:
            yield
        finally:
            loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await loading
            for each in (self.models, self.store, self.quota, self.usage):
                await each.close()
            self._text.close()
            self.database.close()
            await asyncio.to_thread(self.tracer.close)

    async def priorities(self, body: bytes, body_type: str, answer_type: str, caller: Caller, record: Record) -> bytes:
        """Answer one POST /v1/priorities. Raises the ApiError that fails the request."""
        request = await self._checked(body, body_type, caller)
        record.tokens = request.tokens
        try:
            gathered = await gather(request, caller, self._salt(caller), self._shared)
        except (Overloaded, TooLarge):
            await self._tell_quota(caller, None, record)
            raise
        record.cached_tokens = gathered.cost.cached_tokens
        await self._tell_quota(caller, gathered.cost.remaining, record)
        self._used(caller, request, gathered)
        return await _off_loop(
            # Per token: id, logprob, priority, and each signal, of 4 bytes or more.
            4 * (3 + len(request.draft.signals)) * request.tokens > LOOP_BYTES,
            lambda: self._answer(request, gathered, answer_type),
        )

    async def coverage(self, body: bytes, body_type: str, answer_type: str, caller: Caller) -> bytes:
        """Answer one POST /v1/coverage. Raises the ApiError that fails the request."""
        request = await self._checked(body, body_type, caller)
        stored = await coverage(request, self._salt(caller), self.store)
        return answer.write_coverage(request, stored, answer_type)

    async def limits(self, caller: Caller) -> Limits:
        """What the server takes at once, and what a team may use, as GET /v1/limits prints it."""
        server, team = self.settings.server, caller.limits
        left = await self.quota.remaining(caller)
        return Limits(
            max_body_bytes=server.max_body_bytes,
            max_sequences=server.max_sequences,
            max_request_tokens=server.max_request_tokens,
            max_queued_tokens=server.max_queued_tokens,
            queued_tokens=self.admission.queued_tokens,
            team=TeamLimits(
                team=caller.team,
                weight=team.weight,
                tokens_per_minute=team.tokens_per_minute,
                tokens_remaining=left.tokens_remaining,
                concurrent_tokens=team.concurrent_tokens,
                in_flight_tokens=left.in_flight_tokens,
            ),
        )

    async def _checked(self, body: bytes, body_type: str, caller: Caller) -> Request:
        with self.tracer.span("door", bytes=len(body)):
            draft = await _off_loop(len(body) > LOOP_BYTES, lambda: self.door.open(body, body_type))
            if draft.has_text:
                return await self._text.run((caller.team, draft.service_class), lambda: self.door.check(draft))
            return await _off_loop(len(body) > LOOP_BYTES, lambda: self.door.check(draft))

    def _answer(self, request: Request, gathered: Gathered, media_type: str) -> bytes:
        with self.tracer.span("priority", method=request.draft.method.name):
            return answer.write(request, score(request, gathered), gathered.cost, media_type)

    def _feed(self, name: str, engine: Engine) -> Feed:
        return Feed(engine, self.store, self.admission, self.metrics, name=name, queue=self._queue)

    def _salt(self, caller: Caller) -> str:
        return caller.team if self.settings.store.scope == "team" else ""

    async def _tell_quota(self, caller: Caller, left: Remaining | None, record: Record) -> None:
        """Write down for the headers what is left to a team of its tokens per minute."""
        limit = caller.limits.tokens_per_minute
        if limit is None:
            return
        with contextlib.suppress(Unavailable):  # the answer is there; what its headers say may be missing
            left = left or await self.quota.remaining(caller)
            record.quota = limit, left.tokens_remaining or 0, left.reset_seconds

    def _used(self, caller: Caller, request: Request, gathered: Gathered) -> None:
        for model, _ in request.draft.models:
            tokens, cached = gathered.cost.by_model.get(model.name, (0, 0))
            self.usage.add(caller.team, model.name, tokens=tokens, cached_tokens=cached, requests=1)
            self.metrics.scored(caller.team, model.name, tokens, cached)

    def _refused(self, caller: Caller, model: str, reason: Reason) -> None:
        self.usage.add(caller.team, model, rejections=1)
        self.metrics.rejected(caller.team, reason)


async def _off_loop(large: bool, work: Callable[[], T]) -> T:
    """Run `work` in a thread if it is large, so that other requests get their turns."""
    return await asyncio.to_thread(work) if large else work()
