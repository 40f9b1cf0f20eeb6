"""What a Client is made of and asks of a server besides scores: the asynchronous client, run in a background thread.

Knows how a call is handed over and waited for. Everything else is in `async_session.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Self

from tokenpriority.async_client import AsyncClient
from tokenpriority.background import Background
from tokenpriority.schema import Limits, MethodInfo, ModelInfo, ServiceClass, UsageEntry
from tokenpriority.usage import Moment

if TYPE_CHECKING:
    import httpx


class Session:
    """A server; may be used from several threads, pickled, and used after a fork."""

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
        self._remote = AsyncClient(
            url,
            api_key=api_key,
            model=model,
            service_class=service_class,
            timeout=timeout,
            max_inflight_tokens=max_inflight_tokens,
            retries=retries,
            max_wait=max_wait,
            max_outage=max_outage,
            transport=transport,
        )
        self._background = Background(self._remote.aclose)

    def models(self) -> list[ModelInfo]:
        """The server's models."""
        return self._background.run(self._remote.models())

    def methods(self) -> list[MethodInfo]:
        """The server's priority methods, each with the JSON schema of its parameters."""
        return self._background.run(self._remote.methods())

    def limits(self) -> Limits:
        """What the server takes at once and has queued, and what this key's team may use and has left.

        Answered also while calls of this client wait for a quota.
        """
        return self._background.run(self._remote.limits())

    def usage(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        model: str | None = None,
        team: str | None = None,
    ) -> list[UsageEntry]:
        """Tokens, requests and rejections by team, model and hour, oldest first, of the hours that overlap
        [`since`, `until`).

        A moment is a datetime with a time zone, or seconds since the epoch. Without `until` there is no end; without
        `since` it begins 31 days before `until`, or before now (`since=0` is everything). A key of scope `score` is
        told of its own team, one of scope `admin` of every team. Raises ValueError if a datetime has no time zone;
        Forbidden if a key of scope `score` asks for another `team`.
        """
        return self._background.run(self._remote.usage(since=since, until=until, model=model, team=team))

    def ready(self) -> bool:
        """Whether the server answers and its models are loaded; one attempt."""
        return self._background.run(self._remote.ready())

    def wait_until_ready(self, timeout: float, models: Iterable[str] | None = None) -> None:
        """Return once the server is ready, or, with `models`, once those of these names are, whatever the others do.

        Raises ConnectionFailed after `timeout` seconds; Unavailable at once if a model says it never will be, and, with
        `models`, NotFound or another ApiError at once if waiting cannot help.
        """
        self._background.run(self._remote.wait_until_ready(timeout, models))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each model that has answered or was pinned."""
        return self._remote.fingerprints

    def pin(self, fingerprints: Mapping[str, str]) -> None:
        """Expect these fingerprints by model, those of an earlier run or of a Calibration.

        Raises FingerprintChanged if a model has already answered with another; later answers raise it likewise.
        """
        self._remote.pin(fingerprints)

    def close(self) -> None:
        """Cancel what is under way, close the connections and end the thread; idempotent."""
        self._background.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> AsyncClient:
        return self._remote

    def __setstate__(self, remote: AsyncClient) -> None:
        self._remote = remote
        self._background = Background(remote.aclose)
