"""The connections of one event loop to one server: bounds, retries, errors.

Knows HTTP, and is the only module that runs httpx. Knows nothing of sequences or scores.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from tokenpriority import wire
from tokenpriority.cancelling import uncut
from tokenpriority.errors import ConnectionFailed
from tokenpriority.exchange import read_error
from tokenpriority.retry import next_delay, worth_retrying

MAX_REQUESTS = 8
"""Requests in flight; equal to the connections of the pool, so that nothing ever waits inside it."""
CONNECT_SECONDS = 10.0
"""Limit on connecting, and on waiting for the pool: the latter cannot happen and would be a bug."""


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
    """Attempts after the first."""
    transport: httpx.AsyncBaseTransport | None = None
    """Instead of the network, such as `httpx.ASGITransport(app)`."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url: must start with http:// or https://, got {self.url!r}")
        for name, least in (("timeout", 0), ("max_inflight_tokens", 0), ("retries", -1)):
            if not getattr(self, name) > least:
                raise ValueError(f"{name}: must be greater than {least}, got {getattr(self, name)}")

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
        self._tokens = TokenBudget(settings.max_inflight_tokens)
        headers = {"accept": wire.MSGPACK}
        if settings.api_key is not None:
            headers["authorization"] = f"Bearer {settings.api_key}"
        quick = min(settings.timeout, CONNECT_SECONDS)
        self._http = httpx.AsyncClient(
            base_url=settings.url,
            headers=httpx.Headers(headers, encoding="utf-8"),
            timeout=httpx.Timeout(settings.timeout, connect=quick, pool=quick),
            limits=httpx.Limits(max_connections=MAX_REQUESTS, max_keepalive_connections=MAX_REQUESTS),
            transport=settings.transport,
        )

    async def post(self, path: str, body: bytes, tokens: int, failed: int = 0) -> httpx.Response:
        """A 2xx answer to a body that costs `tokens`; waits for room first and keeps it through all retries.

        `failed` attempts at what it asks for were made before, and count.
        """
        async with self._tokens.hold(tokens), self._requests:
            return await self._send("POST", path, body, failed)

    async def get(self, path: str) -> httpx.Response:
        """A 2xx answer."""
        async with self._requests:
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

    async def pause(self, attempt: int, retry_after: float | None = None) -> None:
        """Wait as long as is due after failed attempt number `attempt`, from 0."""
        await self._sleep(next_delay(attempt, retry_after, self._rng))

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    async def _send(self, method: str, path: str, body: bytes | None = None, failed: int = 0) -> httpx.Response:
        """Send until answered. Raises ApiError (what the server said last) or ConnectionFailed."""
        headers = {"content-type": wire.MSGPACK} if body is not None else None
        for attempt in itertools.count(failed):
            retry_after = None
            try:
                response = await uncut(self._http.request(method, path, content=body, headers=headers))
            except httpx.RequestError as error:
                again = isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol)
                if not again or attempt >= self._settings.retries:
                    raise self._unreachable(method, path, attempt, error) from error
            else:
                if response.is_success:
                    return response
                refusal = read_error(response.status_code, response.headers, response.content)
                if not worth_retrying(response.status_code) or attempt >= self._settings.retries:
                    raise refusal
                retry_after = refusal.retry_after
            await self.pause(attempt, retry_after)
        raise AssertionError("the loop above ends by return or raise")

    def _unreachable(self, method: str, path: str, attempt: int, error: Exception) -> ConnectionFailed:
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        return ConnectionFailed(f"{method} {self._settings.url}{path}: no answer in {attempt + 1} attempts ({what})")


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
