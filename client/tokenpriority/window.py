"""Requests begun ahead of their use, in order and within a bound.

Knows order, bounds and futures, of asyncio and of threads alike. Knows nothing of what the requests are.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar, get_args

from tokenpriority.errors import SequenceErrors
from tokenpriority.scores import ScoreFailure, Scores
from tokenpriority.sequences import Entry, Item, grouped

Result = Scores | ScoreFailure
Errors = Literal["raise", "return"]
"""What score_many does with a sequence that failed: raise in its place, or hand it out as a ScoreFailure."""


class Pending(Protocol):
    """What asyncio's and concurrent's futures have in common."""

    def done(self) -> bool:
        """Whether it has finished, failed or been cancelled."""

    def cancel(self) -> bool:
        """Cancel it; False if it is done."""

    def cancelled(self) -> bool:
        """Whether it has been cancelled."""

    def exception(self) -> BaseException | None:
        """What it failed with."""


F = TypeVar("F", bound=Pending)
R = TypeVar("R")
T = TypeVar("T")


def ahead(
    entries: Iterable[Entry],
    ask: Callable[[list[Entry]], Coroutine[Any, Any, list[R]]],
    begin: Callable[[Coroutine[Any, Any, list[R]]], F],
    max_tokens: int,
    group_tokens: int,
) -> Generator[F]:
    """One future per group of entries, in order, each begun before it is wanted.

    A future is handed out once it is done or once more than `max_tokens` are begun and not yet handed out. An error
    of the iterable comes as a failed future in its place. Closing the iterator cancels what was not handed out.
    """
    begun: deque[tuple[int, F]] = deque()
    tokens = 0
    try:
        for size, future in _begin_all(entries, ask, begin, group_tokens):
            begun.append((size, future))
            tokens += size
            while begun and (tokens > max_tokens or begun[0][1].done()):
                tokens -= begun[0][0]
                yield begun.popleft()[1]
        while begun:
            yield begun.popleft()[1]
    finally:
        for _, future in begun:
            discard(future)


def discard(future: Pending) -> None:
    """Cancel a future nobody will ask for; if it has failed, take note of that, so that nothing is logged."""
    if not future.cancel() and not future.cancelled():
        future.exception()


def check_errors(errors: str) -> None:
    """Raises ValueError if it is none of `Errors`."""
    if errors not in get_args(Errors):
        raise ValueError(f"errors: must be one of {', '.join(get_args(Errors))}, got {errors!r}")


def handed_out(results: list[Result], position: int, errors: Errors) -> Iterator[Result]:
    """Results to the caller of score_many; with errors="raise" a failure is raised in its place."""
    for number, result in enumerate(results, position):
        if errors == "raise" and isinstance(result, ScoreFailure):
            raise SequenceErrors({number: result.error}, [])
        yield result


def both_halves(results: list[Result]) -> list[Scores]:
    """Results to the caller of score. Raises SequenceErrors, which holds both halves, if any sequence failed."""
    failures = {number: r.error for number, r in enumerate(results) if isinstance(r, ScoreFailure)}
    scores = [None if isinstance(r, ScoreFailure) else r for r in results]
    if failures:
        raise SequenceErrors(failures, scores)
    return [s for s in scores if s is not None]


def _begin_all(
    entries: Iterable[Entry],
    ask: Callable[[list[Entry]], Coroutine[Any, Any, list[R]]],
    begin: Callable[[Coroutine[Any, Any, list[R]]], F],
    group_tokens: int,
) -> Iterator[tuple[int, F]]:
    try:
        for group in grouped(entries, group_tokens):
            yield sum(entry.tokens for entry in group if isinstance(entry, Item)), begin(ask(group))
    except Exception as error:
        yield 0, begin(_failed(error))


async def gathered(coroutines: list[Coroutine[Any, Any, T]]) -> list[T]:
    """The results in order; the first failure cancels the others and is raised as it is."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _failed(error: Exception) -> list[Any]:
    raise error
