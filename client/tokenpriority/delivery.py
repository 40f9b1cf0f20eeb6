"""A group of sequences brought to the server: in halves where it is too large, again where the engine failed.

Knows what of an answer is sent again. HTTP and whole requests that fail are in `connection.py`, the answer's checks in
`exchange.py`.
"""

from __future__ import annotations

from typing import TypeVar

from tokenpriority.connection import Connection
from tokenpriority.errors import ApiError, TooLarge
from tokenpriority.exchange import A, Call, Question, build_request, read
from tokenpriority.pins import Pins
from tokenpriority.scores import ScoreFailure
from tokenpriority.sequences import Item

R = TypeVar("R")

SERVER_FAULT = 500
"""The least status of an error that is the server's and not the sequence's: EngineFault, Unavailable, InternalError."""


async def deliver(
    connection: Connection, question: Question[A, R], items: list[Item], call: Call, pins: Pins, retries: int
) -> list[R | ScoreFailure]:
    """One result per item, in order.

    Items that failed through a fault of the server (status >= 500) are sent again, they alone, up to `retries` times
    after the delays of `retry.next_delay`; what then still fails is that item's failure. Raises as `Client.score`.
    """
    results = await _post(connection, question, items, call, pins, 0)
    for attempt in range(retries):
        faulty = [number for number, result in enumerate(results) if _is_fault(result)]
        if not faulty:
            break
        await connection.pause(attempt)
        try:
            answered = await _post(connection, question, [items[n] for n in faulty], call, pins, attempt + 1)
        except ApiError as error:  # of all that was sent again, after the retries left; the others keep their scores
            if error.status < SERVER_FAULT:
                raise
            return [ScoreFailure(items[n].id, error) if n in faulty else r for n, r in enumerate(results)]
        for number, result in zip(faulty, answered, strict=True):
            results[number] = result
    return results


def _is_fault(result: object) -> bool:
    return isinstance(result, ScoreFailure) and result.error.status >= SERVER_FAULT


async def _post(
    connection: Connection, question: Question[A, R], items: list[Item], call: Call, pins: Pins, failed: int
) -> list[R | ScoreFailure]:
    """One request, checked and pinned; what is too large for the server is sent in halves. `failed` attempts count."""
    try:
        body = build_request(items, call)
        reply = await connection.post(question.path, body, sum(item.tokens for item in items), failed)
    except TooLarge as error:
        if len(items) == 1:
            return [ScoreFailure(items[0].id, error)]
        half = len(items) // 2
        return [
            *await _post(connection, question, items[:half], call, pins, failed),
            *await _post(connection, question, items[half:], call, pins, failed),
        ]
    response = read(reply.content, question.body, reply.headers.get("content-type", ""))
    results = question.read(response, items, call)
    pins.check(response)
    return results
