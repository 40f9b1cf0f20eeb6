"""Cancelling an HTTP request without leaving connections open.

httpx closes connections that broke or expired on the way of the next request. asyncio's cancellation cuts that short,
and those it did not come to stay open until they are collected; anyio's lets it finish. Knows nothing of HTTP itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


class GivenUp(Exception):
    """The scope was cancelled before the work was done."""


async def uncut(work: Coroutine[Any, Any, T], scope: anyio.CancelScope | None = None) -> T:
    """The result of `work`, done in a task of its own, which a cancellation of the caller reaches as anyio's.

    The caller ends when the work has, however often it is cancelled. Raises GivenUp if someone else cancels the
    `scope`.
    """
    scope = scope or anyio.CancelScope()
    task = asyncio.create_task(_within(scope, work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        scope.cancel()
        task.add_done_callback(_retrieved)
        while not task.done():
            with suppress(asyncio.CancelledError):  # one more: this one is raised at the end
                await asyncio.wait([task])
        raise


async def _within(scope: anyio.CancelScope, work: Coroutine[Any, Any, T]) -> T:
    with scope:
        return await work
    raise GivenUp


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Nobody wants to hear how it ended."""
    if not task.cancelled():
        task.exception()
