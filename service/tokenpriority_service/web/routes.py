"""The routes: from an HTTP request to the service and back.

Knows headers and bodies. Knows nothing of what is scored or how. Errors are raised as ApiError and written in one
place, failure.py.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import WithJsonSchema

from tokenpriority import methods, wire
from tokenpriority.errors import ApiError, Forbidden, InvalidRequest, Unavailable, shown
from tokenpriority.schema import UsageReport
from tokenpriority_service.engines.engine import RETRY_SECONDS
from tokenpriority_service.service import Service
from tokenpriority_service.teams.caller import Caller, Scope
from tokenpriority_service.teams.usage import RECENT_DAYS
from tokenpriority_service.web import media, record
from tokenpriority_service.web.body import read
from tokenpriority_service.web.failure import answer_type

MAX_SECONDS = 253_402_300_799
"""The end of the year 9999."""
USAGE_QUERY = ("since", "until", "model", "team")
Seconds = Annotated[
    int | None,
    Query(ge=0, le=MAX_SECONDS),
    WithJsonSchema({"type": "integer", "minimum": 0, "maximum": MAX_SECONDS}),  # a query has no null
]
"""Seconds since the epoch, if it is given."""
Since = Annotated[
    Seconds,
    Query(description=f"Seconds since the epoch; default {RECENT_DAYS} days before `until`, or before now if earlier."),
]
Until = Annotated[Seconds, Query(description="Seconds since the epoch; default no end.")]
Word = Annotated[str, Query(max_length=200, pattern=r"^[^\x00]*$")]
"""A name; PostgreSQL has no text with NUL in it."""


class ClientGone(Exception):
    """The client hung up; there is nobody to answer."""


def create_router(service: Service) -> APIRouter:
    """All routes over one service."""
    router = APIRouter()

    def scope(name: Scope) -> Callable[[Request], Awaitable[Caller]]:
        async def caller(request: Request) -> Caller:
            about = record.of(request.scope)
            found = await service.directory.caller(request.headers.get("authorization"), name)
            about.team = found.team
            return found

        return caller

    keyed = Depends(scope("score"))
    admin = Depends(scope("admin"))

    @router.post("/v1/priorities")
    async def priorities(request: Request, caller: Caller = keyed) -> Response:
        """Score token sequences: per-token log-probabilities and signed priorities."""
        body, body_type = await _body(request, service.settings.server.max_body_bytes)
        media_type = answer_type(request)
        work = service.priorities(body, body_type, media_type, caller, record.of(request.scope))
        return Response(await _while_connected(request, work), media_type=media_type)

    @router.post("/v1/coverage")
    async def coverage(request: Request, caller: Caller = keyed) -> Response:
        """How much of a request to /v1/priorities is stored; computes nothing."""
        body, body_type = await _body(request, service.settings.server.max_body_bytes)
        media_type = answer_type(request)
        work = service.coverage(body, body_type, media_type, caller)
        return Response(await _while_connected(request, work), media_type=media_type)

    @router.get("/v1/models", dependencies=[keyed])
    async def models(request: Request) -> Response:
        """The models of this server, and whether each is ready."""
        return _struct(request, service.models.listing())

    @router.get("/v1/methods", dependencies=[keyed])
    async def list_methods(request: Request) -> Response:
        """The priority methods, each with the schema of its parameters."""
        return _struct(request, methods.describe())

    @router.get("/v1/limits")
    async def limits(request: Request, caller: Caller = keyed) -> Response:
        """What the server takes at once, and what the caller's team may use."""
        return _struct(request, await service.limits(caller))

    @router.get("/v1/usage")
    async def usage(
        request: Request,
        caller: Caller = keyed,
        *,
        since: Since = None,
        until: Until = None,
        model: Word | None = None,
        team: Word | None = None,
    ) -> Response:
        """What was used, by team, model and hour: of the hours that overlap [`since`, `until`), by default the last 31
        days."""
        for name in request.query_params:
            if name not in USAGE_QUERY:
                raise InvalidRequest(f"{shown(name)}: unknown query parameter; known are {', '.join(USAGE_QUERY)}")
        if "admin" not in caller.scopes and team not in (None, caller.team):
            raise Forbidden(f"team: this key sees the usage of its own team, {caller.team!r}, only; got {team!r}")
        media_type = answer_type(request)
        whose = team if "admin" in caller.scopes else caller.team
        report = UsageReport(usage=await service.usage.read(whose, model, since, until))
        # In a thread: a year of many teams is megabytes.
        return Response(await asyncio.to_thread(wire.encode, report, media_type), media_type=media_type)

    @router.get("/metrics", dependencies=[admin])
    async def metrics() -> Response:
        """Prometheus metrics of this process."""
        return Response(service.metrics.render(), media_type=service.metrics.media_type)

    @router.get("/healthz")
    async def healthz(request: Request) -> Response:
        """The process answers."""
        return _struct(request, {"status": "ok"})

    @router.get("/readyz")
    async def readyz(request: Request) -> Response:
        """Every model is ready, its engine in order, and the server is not draining."""
        if service.gate.draining:
            raise Unavailable("the server is draining", retry_after=RETRY_SECONDS)
        unready = service.models.unready
        if unready:
            what = "; ".join(f"model {name!r}: {why}" for name, why in unready.items())
            raise Unavailable(f"not ready: {what}", retry_after=RETRY_SECONDS)
        return _struct(request, {"status": "ready"})

    return router


def _struct(request: Request, value: Any) -> Response:
    media_type = answer_type(request)
    return Response(wire.encode(value, media_type), media_type=media_type)


async def _body(request: Request, limit: int) -> tuple[bytes, str]:
    """The body and its format."""
    body_type = media.body_type(request.headers.get("content-type"), request.headers.get("content-encoding"))
    answer_type(request)  # a format nobody can answer in is refused before the body is read
    return await read(request, limit), body_type


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
