"""The routes: from an HTTP request to the service and back.

Knows headers and bodies. Knows nothing of what is scored or how. Errors are raised as ApiError and written in one
place, failure.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from tokenpriority import methods, wire
from tokenpriority.errors import ApiError, TooLarge, Unavailable
from tokenpriority_service import media, record
from tokenpriority_service.dispatch import RETRY_SECONDS
from tokenpriority_service.failure import answer_type
from tokenpriority_service.service import Service


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


def create_router(service: Service) -> APIRouter:
    """All routes over one service."""
    router = APIRouter()

    def team(request: Request) -> None:
        record.of(request.scope).team = service.teams.team(request.headers.get("authorization"))

    keyed = [Depends(team)]

    @router.post("/v1/priorities", dependencies=keyed)
    async def priorities(request: Request) -> Response:
        """Score token sequences: per-token log-probabilities and signed priorities."""
        body_type = media.body_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
        media_type = answer_type(request)
        body = await _read(request, service.settings.server.max_body_bytes)
        work = service.priorities(body, body_type, media_type, record.of(request.scope))
        return Response(await _while_connected(request, work), media_type=media_type)

    @router.get("/v1/models", dependencies=keyed)
    async def models(request: Request) -> Response:
        """The models of this server, and whether each is ready."""
        return _struct(request, service.models.listing())

    @router.get("/v1/methods", dependencies=keyed)
    async def list_methods(request: Request) -> Response:
        """The priority methods, each with the schema of its parameters."""
        return _struct(request, methods.describe())

    @router.get("/v1/limits", dependencies=keyed)
    async def limits(request: Request) -> Response:
        """What the server takes at once."""
        return _struct(request, service.limits())

    @router.get("/healthz")
    async def healthz(request: Request) -> Response:
        """The process answers."""
        return _struct(request, {"status": "ok"})

    @router.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Every model is ready, its engine in order, and the server is not draining."""
        if service.gate.draining:
            raise Unavailable("the server is draining")
        unready = service.models.unready
        if unready:
            what = "; ".join(f"model {name!r}: {why}" for name, why in unready.items())
            raise Unavailable(f"not ready: {what}", retry_after=RETRY_SECONDS)
        return _struct(request, {"status": "ready"})

    return router


def _struct(request: Request, value: Any) -> Response:
    media_type = answer_type(request)
    return Response(wire.encode(value, media_type), media_type=media_type)


async def _read(request: Request, limit: int) -> bytes:
    """The body, refused as soon as it is known to be over the limit: by its declared length, else while it comes."""
    declared = request.headers.get("content-length")
    if declared is not None and int(declared) > limit:
        raise TooLarge(f"body: must be at most {limit} bytes (max_body_bytes), got {declared}")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"body: must be at most {limit} bytes (max_body_bytes), got more than {limit}")
        chunks.append(chunk)
    return b"".join(chunks)


async def _while_connected(request: Request, work: Coroutine[Any, Any, bytes]) -> bytes:
    """The result of `work`, which is cancelled if the client hangs up first. Raises ClientGone then."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, ApiError):
            await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
