"""The asynchronous client: everything the server offers, as coroutines.

Knows how calls become requests and results. The contract's checks are in `exchange.py`, HTTP in `connection.py`,
order and bounds in `window.py`; the synchronous client runs this one in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from tokenpriority.connection import Connection, Settings
from tokenpriority.delivery import deliver
from tokenpriority.errors import ConnectionFailed
from tokenpriority.exchange import Call, read
from tokenpriority.pins import Pins
from tokenpriority.progress import Advance, progress_bar
from tokenpriority.readiness import until_ready
from tokenpriority.schema import Limits, MethodInfo, MethodList, ModelInfo, ModelList
from tokenpriority.scores import Scores
from tokenpriority.sequences import MAX_TOKENS, Entry, Item, SequenceLike, encoded, grouped
from tokenpriority.window import Errors, Result, ahead, both_halves, check_errors, gathered, handed_out

if TYPE_CHECKING:
    import httpx

    from tokenpriority.calibration import Calibration

T = TypeVar("T")


class AsyncClient:
    """A scoring server, from within an event loop. Surface and errors are those of `Client`.

    One loop at a time: a call from another loop opens connections of its own. Close (`async with`, `aclose`) before a
    loop ends: from another loop its connections cannot be closed, and they stay open until they are collected.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        model: str = "reference",
        timeout: float = 120.0,
        max_inflight_tokens: int = 262_144,
        retries: int = 8,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.model = model
        self.settings = Settings(url.rstrip("/"), api_key, timeout, max_inflight_tokens, retries, transport)
        self._pins = Pins()
        self._connection: Connection | None = None

    async def score(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        offsets: bool = False,
    ) -> list[Scores]:
        """Scores of each sequence, in order; see `Client.score`."""
        call = Call(model or self.model, method, params, signals, offsets)
        return await self.score_entries(list(encoded(sequences)), call)

    async def score_entries(self, entries: list[Entry], call: Call) -> list[Scores]:
        """`score` of sequences that are encoded already, by whichever thread the caller's iterable belongs to."""
        groups = grouped(entries, self.group_tokens)
        parts = await gathered([self.ask(group, call) for group in groups])
        return both_halves([result for part in parts for result in part])

    @overload
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = ...,
        params: Mapping[str, Any] | None = ...,
        signals: Iterable[str] = ...,
        model: str | None = ...,
        progress: bool = ...,
        errors: Literal["raise"] = ...,
    ) -> AsyncGenerator[Scores]: ...
    @overload
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = ...,
        params: Mapping[str, Any] | None = ...,
        signals: Iterable[str] = ...,
        model: str | None = ...,
        progress: bool = ...,
        errors: Literal["return"],
    ) -> AsyncGenerator[Result]: ...
    def score_many(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        progress: bool = False,
        errors: Errors = "raise",
    ) -> AsyncGenerator[Result]:
        """Scores of many sequences, in order; see `Client.score_many`. The iterable is read within the loop."""
        check_errors(errors)
        call = Call(model or self.model, method, params, signals)
        return self._stream(encoded(sequences), call, progress_bar(progress, sequences), errors)

    async def calibrate(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str,
        params: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> Calibration:
        """The exact threshold of a method over a dataset; see `Client.calibrate`."""
        from tokenpriority.calibration import Calibrator  # loads every method: 0.1 s that few calls need

        async with AsyncExitStack() as stack:
            calibrator = stack.enter_context(Calibrator(method, params, model=self.model))
            asked = calibrator.questions(sequences, progress=progress)
            streams = [await stack.enter_async_context(aclosing(self.score_many(**each))) for each in asked]
            async for first in streams[0]:
                calibrator.add([first, *[await anext(stream) for stream in streams[1:]]])
            return calibrator.calibration(self.fingerprints)

    async def models(self) -> list[ModelInfo]:
        """The server's models."""
        return (await self._get("/v1/models", ModelList)).models

    async def methods(self) -> list[MethodInfo]:
        """The server's priority methods, each with the JSON schema of its parameters."""
        return (await self._get("/v1/methods", MethodList)).methods

    async def limits(self) -> Limits:
        """What the server takes at once, and what it has queued."""
        return await self._get("/v1/limits", Limits)

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

    @property
    def group_tokens(self) -> int:
        """Tokens per request: four requests fill the bound on tokens in flight."""
        return max(1, min(MAX_TOKENS, self.settings.max_inflight_tokens // 4))

    async def ask(self, entries: list[Entry], call: Call) -> list[Result]:
        """One result per entry, in order; equal sequences are sent once."""
        unique = {entry.key: entry for entry in entries if isinstance(entry, Item)}
        if not unique:
            return [entry for entry in entries if not isinstance(entry, Item)]
        items, retries = list(unique.values()), self.settings.retries
        results = dict(zip(unique, await deliver(self._connect(), items, call, self._pins, retries), strict=True))
        return [replace(results[e.key], id=e.id) if isinstance(e, Item) else e for e in entries]

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

    async def _stream(
        self, entries: Iterable[Entry], call: Call, bar: AbstractContextManager[Advance], errors: Errors
    ) -> AsyncGenerator[Result]:
        bound = self.settings.max_inflight_tokens
        requests = ahead(entries, lambda group: self.ask(group, call), asyncio.create_task, bound, self.group_tokens)
        position = 0
        with bar as advance, closing(requests):
            for request in requests:
                results = await request
                advance(results)
                for result in handed_out(results, position, errors):
                    yield result
                position += len(results)

    async def _get(self, path: str, kind: type[T]) -> T:
        reply = await self._connect().get(path)
        return read(reply.content, kind, reply.headers.get("content-type", ""))

    def _connect(self) -> Connection:
        """The connection of the running loop; another loop (a second `asyncio.run`, a fork) gets its own."""
        if self._connection is None or self._connection.loop is not asyncio.get_running_loop():
            self._connection = Connection(self.settings)
        return self._connection
