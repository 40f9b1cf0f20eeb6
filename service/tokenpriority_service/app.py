"""The ASGI application of one server.

Knows which parts belong together and when models are loaded and freed. Everything it needs is passed in; it reads no
environment and no file.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tokenpriority.errors import ApiError, InvalidRequest, NotFound, shown
from tokenpriority_service.configuration.settings import Settings
from tokenpriority_service.engines import Engine, Load, load_engine
from tokenpriority_service.scheduling.dispatch import Work
from tokenpriority_service.scheduling.fair_queue import FairQueue
from tokenpriority_service.service import Service
from tokenpriority_service.web.access import Access
from tokenpriority_service.web.failure import failure
from tokenpriority_service.web.openapi import provider
from tokenpriority_service.web.record import CLIENT_GONE
from tokenpriority_service.web.routes import ClientGone, create_router

DESCRIPTION = """Reference log-probabilities and signed token priorities for supervised fine-tuning.

Every array has the length of `token_ids`; row i speaks of the prediction of token i, so index 0 is null / NaN with
priority 0. JSON is for people; `application/x-msgpack` carries the same structs with arrays as raw little-endian bytes
(`<u4` ids, `u1` mask, `<f4` everything else)."""


def create_app(
    settings: Settings,
    engines: Mapping[str, Engine] | None = None,
    *,
    load: Load = load_engine,
    queue: type[FairQueue[Work]] = FairQueue,
) -> FastAPI:
    """The application. Models of `settings` are loaded in the background once it starts; `engines` are ready ones by
    name, beside them or in their place. `queue` says whose work is next. The service is `app.state.service`.
    Raises database.InvalidUrl.
    """
    service = Service(settings, engines or {}, load, queue)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(title="tokenpriority", description=DESCRIPTION, version="1", lifespan=lifespan)
    app.state.service = service
    app.include_router(create_router(service))
    app.add_middleware(Access, gate=service.gate, metrics=service.metrics, tracer=service.tracer)
    app.openapi = provider(app)  # type: ignore[method-assign]

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return failure(request, error)

    @app.exception_handler(RequestValidationError)
    async def query_error(request: Request, error: RequestValidationError) -> Response:
        """A query parameter out of its range; bodies are read elsewhere."""
        first = error.errors()[0]
        name, what = first["loc"][-1], first["msg"].removeprefix("Input ")
        return failure(request, InvalidRequest(f"{name}: {what}, got {shown(first['input'])}"))

    @app.exception_handler(HTTPException)
    async def router_error(request: Request, error: HTTPException) -> Response:
        """The router's own 404 and 405."""
        response = failure(request, NotFound(f"no route {request.method} {request.url.path}"))
        response.status_code = error.status_code
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientGone)
    @app.exception_handler(ClientDisconnect)
    async def client_gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    return app
