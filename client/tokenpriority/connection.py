"""The connections of one event loop to one server: bounds, retries, errors.

Knows HTTP, and is the only module that runs httpx. Knows nothing of sequences or scores.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from tokenpriority import wire
from tokenpriority.cancelling import uncut
from tokenpriority.errors import ConnectionFailed
from tokenpriority.exchange import read_error
from tokenpriority.retry import Patience, next_delay, worth_retrying

MAX_REQUESTS = 8
"""Bodies in flight. The pool has one connection more, for a question without one (GET), so that it is answered while
the others wait for a quota, and nothing ever waits inside the pool."""
CONNECT_SECONDS = 10.0
"""Limit on connecting, and on waiting for the pool: the latter cannot happen and would be a bug."""
LONG_WAIT, TELL_EVERY = 5.0, 60.0
"""Seconds for which a server has put a request off before that is logged, and between two such lines."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """Where and how to reach a server. Raises ValueError naming the field, its value and the limit."""

    url: str
    api_key: str | None = None
    timeout: float = 120.0
    """Seconds without a byte of the answer."""
    max_inflight_tokens: int = 262_144
    """Tokens of requests that were sent and not yet answered, over all calls."""
    retries: int = 8
    """Attempts after the first; 0 also ignores max_wait."""
    max_wait: float = 3600.0
    """Seconds that one request waits, in all, while the server puts it off (429 or 503, with Retry-After)."""
    max_outage: float | None = None
    """Seconds that one request waits, in all, for a server that is away (no connection, no answer, or a gateway's 502,
    503 or 504), whatever `retries`; None counts attempts."""
    transport: httpx.AsyncBaseTransport | None = None
    """Instead of the network, such as `httpx.ASGITransport(app)`."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: must start with http:// or https://, got {self.url!r}")
        for name, least in (("timeout", 0), ("max_inflight_tokens", 0), ("retries", -1)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name}: must be greater than {least}, got {getattr(self, name)}")
        if not self.max_wait >= 0:
            raise ValueError(f"max_wait: must be at least 0, got {self.max_wait}")
        if self.max_outage is not None and not self.max_outage >= 0:
            raise ValueError(f"max_outage: must be at least 0, got {self.max_outage}")

    def __repr__(self) -> str:
        return f"Settings(url={self.url!r})"  # the key stays out of logs


class Connection:
    """A pool of connections with its bounds; belongs to the event loop it was made in."""

    def __init__(
        self,
        settings: Settings,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._settings = settings
        self._sleep = sleep
        self._rng = rng or random.Random()
        self._requests = asyncio.Semaphore(MAX_REQUESTS)
        self._gets = asyncio.Semaphore(1)
        self._told = -TELL_EVERY  # loop time of the last line about waiting
        self._tokens = TokenBudget(settings.max_inflight_tokens)
        headers = {"accept": wire.MSGPACK}
        if settings.api_key is not None:
            headers["authorization"] = f"Bearer {settings.api_key}"
        quick = min(settings.timeout, CONNECT_SECONDS)
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=httpx.Headers(headers, encoding="utf-8"),
            timeout=httpx.Timeout(settings.timeout, connect=quick, pool=quick),
            limits=httpx.Limits(max_connections=MAX_REQUESTS + 1, max_keepalive_connections=MAX_REQUESTS + 1),
            transport=settings.transport,
        )

    async def post(self, path: str, body: bytes, tokens: int, failed: int = 0) -> httpx.Response:
        """A 2xx answer to a body that costs `tokens`; waits for room first and keeps it through all retries.

        `failed` attempts at what it asks for were made before, and count.
        """
        async with self._tokens.hold(tokens), self._requests:
            return await self._send("POST", path, body, failed)

    async def get(self, path: str) -> httpx.Response:
        """A 2xx answer, however many bodies are in flight."""
        async with self._gets:
            return await self._send("GET", path)

    async def ok(self, path: str) -> bool:
        """Whether one attempt is answered with 2xx."""
        try:
            return (await uncut(self._http.get(path))).is_success
        except httpx.TransportError:
            return False

    async def probe(self, path: str) -> httpx.Response | None:
        """The 2xx answer to one attempt; None where another may be answered. Raises ApiError where none will."""
        try:
            response = await uncut(self._http.get(path))
        except httpx.TransportError:
            return None
        if response.is_success:
            return response
        if worth_retrying(response.status_code):
            return None
        raise read_error(response.status_code, response.headers, response.content)

    async def pause(self, attempt: int) -> None:
        """Wait as long as is due after failed attempt number `attempt`, from 0."""
        await self._sleep(next_delay(attempt, None, self._rng))

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, body: bytes | None = None, failed: int = 0) -> httpx.Response:
        """Send until answered. Raises ApiError (what the server said last) or ConnectionFailed."""
        headers = {"content-type": wire.MSGPACK} if body is not None else None
        limits = self._settings
        patience = Patience(limits.retries, limits.max_wait, self._rng, failed, limits.max_outage)
        while True:
            sent = self.loop.time()
            try:
                response = await uncut(self._http.request(method, path, content=body, headers=headers))
            except httpx.RequestError as error:
                again = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
                delay = patience.delay(took=self.loop.time() - sent) if again else None
                attempts = patience.failed + patience.unanswered + (delay is None)
                failure: Exception = self._unreachable(method, path, attempts, error)
                if delay is None:
                    raise failure from error
            else:
                if response.is_success:
                    return response
                failure = refusal = read_error(response.status_code, response.headers, response.content)
                took = self.loop.time() - sent
                delay = patience.delay(refusal, took) if worth_retrying(response.status_code) else None
                if delay is None:
                    raise refusal
            self._tell(failure, patience)
            await self._sleep(delay)

    def _tell(self, failure: Exception, patience: Patience) -> None:
        """Log that a request waits for the server: else nobody would know why a run stands still."""
        now = self.loop.time()
        if patience.waited + patience.away >= LONG_WAIT and now - self._told >= TELL_EVERY:
            self._told = now
            logger.warning("waiting: %s: %s", type(failure).__name__, failure)

    def _unreachable(self, method: str, path: str, attempts: int, error: Exception) -> ConnectionFailed:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return ConnectionFailed(f"{method} {self._settings.url}{path}: no answer in {attempts} attempts ({what})")


class TokenBudget:
    """A bound on tokens in flight, first come, first served; one call larger than the bound goes alone."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._used = 0
        self._turn = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def hold(self, tokens: int) -> AsyncIterator[None]:
        """Hold this many tokens, waiting until they are free."""
        tokens = min(tokens, self._total)
        async with self._turn:  # first come, first served: one waits for room, the others for their turn
            while self._used + tokens > self._total:
                self._freed.clear()
                await self._freed.wait()
            self._used += tokens
        try:
            yield
        finally:
            self._used -= tokens
            self._freed.set()
