"""One replica: its HTTP, its load, and whether it is in rotation.

Knows what an answer is and how long one may take. Knows nothing of models, of evidence or of the other replicas.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

import anyio
import httpx
import msgspec

from tokenpriority.cancelling import GivenUp, uncut
from tokenpriority.retry import parse_retry_after

CONNECT_SECONDS = 5.0
"""Limit on connecting."""
CHECK_SECONDS = 10.0
"""Limit on an answer that costs the model nothing: health, names, version."""

# Less than the five seconds after which vLLM closes an idle connection: a request must not meet that moment.
_KEEPALIVE_SECONDS = 2.0
_ANSWER_BYTES, _ANSWER_BYTES_PER_TOKEN = 1 << 20, 1 << 10


class Unreachable(Exception):
    """No whole answer came: refused, broken off, too late or too long. Another attempt may be answered."""


class Refused(Exception):
    """An answer other than 2xx. `retry_after` is what the server named, in seconds."""

    def __init__(self, status: int, message: str, retry_after: float | None) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after

    @property
    def passing(self) -> bool:
        """Whether another attempt may be answered otherwise."""
        return self.status == 429 or self.status >= 500


@dataclass(frozen=True, slots=True)
class Answer:
    """A 2xx answer."""

    body: bytes
    headers: httpx.Headers


class Replica:
    """One base URL. It belongs to the event loop it is first used in.

    `timeout` is how long an answer to `score` may take, in seconds; `max_concurrent` how many are asked for at once.
    """

    def __init__(self, url: str, *, api_key: str | None, timeout: float, max_concurrent: int) -> None:
        self.url = url
        self.reason: str | None = "not asked yet"
        """Why it is out of rotation; None while it is in."""
        self.tokens = 0
        """Tokens in flight."""
        self.suspected = asyncio.Event()
        """Set when a request gave reason to examine it."""
        self._timeout = timeout
        self._max_concurrent = max_concurrent
        self._requests = 0
        self._held_until = 0.0
        self._scopes: set[anyio.CancelScope] = set()
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=url,
            headers=httpx.Headers(headers, encoding="utf-8"),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
            # Checks are never kept waiting by scoring.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS),
        )

    @property
    def free(self) -> bool:
        """Whether it takes one more request now."""
        return self._requests < self._max_concurrent and self._held_until <= asyncio.get_running_loop().time()

    def begin(self, tokens: int) -> None:
        """Count a request in."""
        self._requests += 1
        self.tokens += tokens

    def end(self, tokens: int) -> None:
        """Count it out."""
        self._requests -= 1
        self.tokens -= tokens

    def hold(self, seconds: float) -> None:
        """Send it no request for so long."""
        self._held_until = max(self._held_until, asyncio.get_running_loop().time() + seconds)

    def suspect(self) -> None:
        """Have it examined soon, if it is in rotation."""
        if self.reason is None:
            self.suspected.set()

    def leave(self, reason: str) -> None:
        """Out of rotation; what it still owes an answer to `score` is given up at once."""
        self.reason = reason
        scopes, self._scopes = self._scopes, set()
        for scope in scopes:
            scope.cancel()

    async def get(self, route: str) -> Answer:
        """A 2xx answer that costs nothing. Raises Unreachable or Refused."""
        return await self._within(CHECK_SECONDS, "GET", route)

    async def post(self, route: str, body: bytes, *, tokens: int = 0, seconds: float | None = None) -> Answer:
        """A 2xx answer to a JSON body, by default within `timeout`. Raises Unreachable or Refused."""
        return await self._within(seconds or self._timeout, "POST", route, body, tokens)

    async def score(self, route: str, body: bytes, *, tokens: int) -> Answer:
        """As `post`, but given up when the replica leaves the rotation."""
        scope = anyio.CancelScope()
        self._scopes.add(scope)
        try:
            return await self._within(self._timeout, "POST", route, body, tokens, scope)
        finally:
            self._scopes.discard(scope)

    async def aclose(self) -> None:
        """Close the connections; idempotent."""
        await self._http.aclose()

    async def _within(
        self,
        seconds: float,
        method: str,
        route: str,
        body: bytes | None = None,
        tokens: int = 0,
        scope: anyio.CancelScope | None = None,
    ) -> Answer:
        """The answer, within so many seconds and until `scope` is cancelled."""
        limit = _ANSWER_BYTES + _ANSWER_BYTES_PER_TOKEN * tokens
        try:
            return await uncut(self._send(seconds, method, route, body, limit), scope)
        except GivenUp:
            raise Unreachable(f"given up: {self.reason}") from None
        except TimeoutError:
            raise Unreachable(f"{route}: no answer within {seconds:g} s") from None
        except httpx.RequestError as error:
            raise Unreachable(f"{route}: {type(error).__name__}: {error}".rstrip(": ")) from None

    async def _send(self, seconds: float, method: str, route: str, body: bytes | None, most: int) -> Answer:
        headers = None if body is None else {"content-type": "application/json"}
        content = bytearray()
        with anyio.fail_after(seconds):
            async with self._http.stream(method, route, content=body, headers=headers) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > most:
                        raise Unreachable(f"{route}: an answer of more than {most} bytes")
        if response.is_success:
            return Answer(bytes(content), response.headers)
        retry_after = parse_retry_after(response.headers.get("retry-after"))
        raise Refused(response.status_code, _message(bytes(content)), retry_after)


def _message(body: bytes) -> str:
    """What an error's body says: vLLM's message, else its first words."""
    with contextlib.suppress(msgspec.DecodeError):
        answer = msgspec.json.decode(body)
        error = answer.get("error", answer.get("detail")) if isinstance(answer, dict) else None
        text = error.get("message") if isinstance(error, dict) else error
        if isinstance(text, str):
            return text[:500]
    return " ".join(body[:200].decode("utf-8", "replace").split())
