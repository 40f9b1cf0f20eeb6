"""The asynchronous client: everything the server offers, as coroutines.

Knows how calls become requests and results. The contract's checks are in `exchange.py`, HTTP in `connection.py`,
order and bounds in `window.py`, the routes without sequences in `async_session.py`; the synchronous client runs this
one in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, aclosing, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from tokenpriority.async_session import AsyncSession
from tokenpriority.coverage import COVERAGE, Coverage
from tokenpriority.delivery import deliver
from tokenpriority.exchange import PRIORITIES, A, Call, Question
from tokenpriority.progress import Advance, progress_bar
from tokenpriority.scores import ScoreFailure, Scores
from tokenpriority.sequences import MAX_TOKENS, Entry, Item, SequenceLike, encoded, grouped
from tokenpriority.window import Errors, Result, ahead, both_halves, check_errors, gathered, handed_out

if TYPE_CHECKING:
    from tokenpriority.calibration import Calibration

R = TypeVar("R")


class AsyncClient(AsyncSession):
    """A scoring server, from within an event loop. Surface and errors are those of `Client`.

    One loop at a time: a call from another loop opens connections of its own. Close (`async with`, `aclose`) before a
    loop ends: from another loop its connections cannot be closed, and they stay open until they are collected.
    """

    async def score(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        offsets: bool = False,
        cached_only: bool = False,
    ) -> list[Scores]:
        """Scores of each sequence, in order; see `Client.score`."""
        call = self.call(method, params, signals, model, offsets=offsets, cached_only=cached_only)
        return await self.score_entries(list(encoded(sequences)), call)

    async def score_entries(self, entries: list[Entry], call: Call) -> list[Scores]:
        """`score` of sequences that are encoded already, by whichever thread the caller's iterable belongs to."""
        groups = grouped(entries, self.group_tokens)
        parts = await gathered([self.ask(group, call, PRIORITIES) for group in groups])
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
        cached_only: bool = ...,
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
        cached_only: bool = ...,
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
        cached_only: bool = False,
    ) -> AsyncGenerator[Result]:
        """Scores of many sequences, in order; see `Client.score_many`. The iterable is read within the loop."""
        check_errors(errors)
        call = self.call(method, params, signals, model, cached_only=cached_only)
        return self._stream(encoded(sequences), call, progress_bar(progress, sequences), errors)

    async def coverage(
        self,
        sequences: Iterable[SequenceLike],
        *,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        signals: Iterable[str] = (),
        model: str | None = None,
        progress: bool = False,
    ) -> Coverage:
        """How much of these sequences the server has stored; see `Client.coverage`."""
        call = self.call(method, params, signals, model)
        bar = progress_bar(progress, sequences, "looking up")
        async with aclosing(self._groups(encoded(sequences), call, COVERAGE, bar)) as groups:
            return Coverage.of([item async for group in groups for item in group])

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

    def call(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        signals: Iterable[str],
        model: str | None,
        *,
        offsets: bool = False,
        cached_only: bool = False,
    ) -> Call:
        """What is asked of every sequence of a call, with this client's defaults."""
        return Call(model or self.model, method, params, signals, offsets, self.service_class, cached_only)

    @property
    def group_tokens(self) -> int:
        """Tokens per request: four requests fill the bound on tokens in flight."""
        return max(1, min(MAX_TOKENS, self.settings.max_inflight_tokens // 4))

    async def ask(self, entries: list[Entry], call: Call, question: Question[A, R]) -> list[R | ScoreFailure]:
        """One result per entry, in order; equal sequences are sent once."""
        unique = {entry.key: entry for entry in entries if isinstance(entry, Item)}
        if not unique:
            return [entry for entry in entries if not isinstance(entry, Item)]
        items, retries = list(unique.values()), self.settings.retries
        answered = await deliver(self._connect(), question, items, call, self._pins, retries)
        results: dict[bytes, Any] = dict(zip(unique, answered, strict=True))
        return [replace(results[e.key], id=e.id) if isinstance(e, Item) else e for e in entries]

    async def _groups(
        self, entries: Iterable[Entry], call: Call, question: Question[A, R], bar: AbstractContextManager[Advance]
    ) -> AsyncGenerator[list[R | ScoreFailure]]:
        """The results of each group of entries, in order, each asked for before it is wanted."""
        bound = self.settings.max_inflight_tokens
        begin = asyncio.create_task
        requests = ahead(entries, lambda group: self.ask(group, call, question), begin, bound, self.group_tokens)
        with bar as advance, closing(requests):
            for request in requests:
                results = await request
                advance(results)
                yield results

    async def _stream(
        self, entries: Iterable[Entry], call: Call, bar: AbstractContextManager[Advance], errors: Errors
    ) -> AsyncGenerator[Result]:
        position = 0
        async with aclosing(self._groups(entries, call, PRIORITIES, bar)) as groups:
            async for results in groups:
                for result in handed_out(results, position, errors):
                    yield result
                position += len(results)
