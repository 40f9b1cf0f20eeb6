"""When a server, or some models of it, can be asked for scores.

Knows what /readyz and GET /v1/models say of it, and when waiting is in vain. Knows nothing of how long to wait.
"""

from __future__ import annotations

import asyncio

from tokenpriority.connection import Connection
from tokenpriority.errors import NotFound, Unavailable
from tokenpriority.exchange import read
from tokenpriority.schema import ModelInfo, ModelList

POLL_SECONDS = 0.25


async def until_ready(connection: Connection, names: list[str] | None) -> None:
    """Return once the server is ready or, with `names`, once these models are.

    Raises Unavailable if a model, or one of these, says that it never will be; with `names` also NotFound if there is
    no such model, and any other ApiError that will be the same next time.
    """
    while True:
        if await (_server_ready(connection) if names is None else _models_ready(connection, names)):
            return
        await asyncio.sleep(POLL_SECONDS)


async def _server_ready(connection: Connection) -> bool:
    if await connection.ok("/readyz"):
        return True
    if await connection.ok("/v1/models"):  # where a key is needed and missing, /readyz alone is asked
        _refuse_broken(await _listed(connection) or [])
    return False


async def _models_ready(connection: Connection, names: list[str]) -> bool:
    listed = await _listed(connection)
    if listed is None:
        return False
    known = {model.name: model for model in listed}
    for name in names:
        if name not in known:
            raise NotFound(f"model: no model {name!r}; the server has {', '.join(known) or 'none'}")
    wanted = [known[name] for name in names]
    _refuse_broken(wanted)
    return all(model.ready for model in wanted)


async def _listed(connection: Connection) -> list[ModelInfo] | None:
    """The server's models; None while it does not answer."""
    reply = await connection.probe("/v1/models")
    return None if reply is None else read(reply.content, ModelList, reply.headers.get("content-type", "")).models


def _refuse_broken(models: list[ModelInfo]) -> None:
    for model in models:
        if model.error is not None:
            raise Unavailable(f"model {model.name!r}: {model.error}")
