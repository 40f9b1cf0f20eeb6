"""What an AsyncClient is made of and asks of a server besides scores.

Knows the settings, the connection of each event loop, the pinned fingerprints, and the routes without sequences.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, TypeVar, get_args

from tokenpriority.connection import Connection, Settings
from tokenpriority.errors import ConnectionFailed
from tokenpriority.exchange import read
from tokenpriority.pins import Pins
from tokenpriority.readiness import until_ready
from tokenpriority.schema import (
    Limits,
    MethodInfo,
    MethodList,
    ModelInfo,
    ModelList,
    ServiceClass,
    UsageEntry,
    UsageReport,
)
from tokenpriority.usage import Moment, usage_path

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


class AsyncSession:
    """A server, from within an event loop; one loop at a time."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str = "reference",
        service_class: ServiceClass = "interactive",
        timeout: float = 120.0,
        max_inflight_tokens: int = 262_144,
        retries: int = 8,
        max_wait: float = 3600.0,
        max_outage: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        classes = get_args(ServiceClass)
        if service_class not in classes:
            raise ValueError(f"service_class: must be one of {', '.join(classes)}, got {service_class!r}")
        self.model = model
        self.service_class = service_class
        self.settings = Settings(
            url.rstrip("/"), api_key, timeout, max_inflight_tokens, retries, max_wait, max_outage, transport
        )
        self._pins = Pins()
        self._connection: Connection | None = None

    async def models(self) -> list[ModelInfo]:
        """The server's models."""
        return (await self._get("/v1/models", ModelList)).models

    async def methods(self) -> list[MethodInfo]:
        """The server's priority methods, each with the JSON schema of its parameters."""
        return (await self._get("/v1/methods", MethodList)).methods

    async def limits(self) -> Limits:
        """What the server takes at once, and what this key's team may use; see `Client.limits`."""
        return await self._get("/v1/limits", Limits)

    async def usage(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        model: str | None = None,
        team: str | None = None,
    ) -> list[UsageEntry]:
        """What was asked of the server, by team, model and hour; see `Client.usage`."""
        return (await self._get(usage_path(since, until, model, team), UsageReport)).usage

    async def ready(self) -> bool:
        """Whether the server answers and its models are loaded; one attempt."""
        return await self._connect().ok("/readyz")

    async def wait_until_ready(self, timeout: float, models: Iterable[str] | None = None) -> None:  # noqa: ASYNC109
        """Return once the server, or these models of it, are ready; see `Client.wait_until_ready`."""
        if isinstance(models, str):
            raise TypeError(f"models: a list of names is expected, got the str {models!r}")
        names = None if models is None else list(models)
        try:
            async with asyncio.timeout(timeout):
                await until_ready(self._connect(), names)
        except TimeoutError:
            what = self.settings.url if names is None else f"{', '.join(names)} at {self.settings.url}"
            raise ConnectionFailed(f"{what} was not ready within {timeout:g} seconds") from None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each model that has answered or was pinned."""
        return dict(self._pins.fingerprints)

    def pin(self, fingerprints: Mapping[str, str]) -> None:
        """Expect these fingerprints by model; see `Client.pin`."""
        self._pins.pin(fingerprints)

    async def aclose(self) -> None:
        """Close the connections; the next call opens new ones."""
        if self._connection is not None:
            await self._connection.aclose()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_connection": None}

    async def _get(self, path: str, kind: type[T]) -> T:
        reply = await self._connect().get(path)
        return read(reply.content, kind, reply.headers.get("content-type", ""))

    def _connect(self) -> Connection:
        """The connection of the running loop; another loop (a second `asyncio.run`, a fork) gets its own."""
        if self._connection is None or self._connection.loop is not asyncio.get_running_loop():
            self._connection = Connection(self.settings)
        return self._connection
