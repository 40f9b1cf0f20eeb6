"""A group of sequences brought to the server: in halves where it is too large, again where the engine failed.

Knows what of an answer is sent again. HTTP and whole requests that fail are in `connection.py`, the answer's checks in
`exchange.py`.
"""

from __future__ import annotations

from tokenpriority.connection import Connection
from tokenpriority.errors import ApiError, TooLarge
from tokenpriority.exchange import Call, build_request, read, read_scores
from tokenpriority.pins import Pins
from tokenpriority.schema import PriorityResponse
from tokenpriority.scores import ScoreFailure
from tokenpriority.sequences import Item
from tokenpriority.window import Result

SERVER_FAULT = 500
"""The least status of an error that is the server's and not the sequence's: EngineFault, Unavailable, InternalError."""


async def deliver(connection: Connection, items: list[Item], call: Call, pins: Pins, retries: int) -> list[Result]:
    """One result per item, in order.

    Items that failed through a fault of the server (status >= 500) are sent again, they alone, up to `retries` times
    after the delays of `retry.next_delay`; what then still fails is that item's failure. Raises as `Client.score`.
    """
    results = await _post(connection, items, call, pins, 0)
    for attempt in range(retries):
        faulty = [number for number, result in enumerate(results) if _is_fault(result)]
        if not faulty:
            break
        await connection.pause(attempt)
        try:
            answered = await _post(connection, [items[n] for n in faulty], call, pins, attempt + 1)
        except ApiError as error:  # of all that was sent again, after the retries left; the others keep their scores
            if error.status < SERVER_FAULT:
                raise
            return [ScoreFailure(r.id, error) if _is_fault(r) else r for r in results]
        for number, result in zip(faulty, answered, strict=True):
            results[number] = result
    return results


def _is_fault(result: Result) -> bool:
    return isinstance(result, ScoreFailure) and result.error.status >= SERVER_FAULT


async def _post(connection: Connection, items: list[Item], call: Call, pins: Pins, failed: int) -> list[Result]:
    """One request, checked and pinned; what is too large for the server is sent in halves. `failed` attempts count."""
    try:
        body = build_request(items, call)
        reply = await connection.post("/v1/priorities", body, sum(item.tokens for item in items), failed)
    except TooLarge as error:
        if len(items) == 1:
            return [ScoreFailure(items[0].id, error)]
        half = len(items) // 2
        return [
            *await _post(connection, items[:half], call, pins, failed),
            *await _post(connection, items[half:], call, pins, failed),
        ]
    response = read(reply.content, PriorityResponse, reply.headers.get("content-type", ""))
    results = read_scores(response, items, call)
    pins.check(response)
    return results
