"""Bodies nobody meant: they are answered, in time and never with a 500, and nothing of them stays in memory."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import psutil
import pytest

from mutants import SEEDS, Mutants, pack
from tokenpriority import wire
from tokenpriority_service.app import create_app
from tokenpriority_service.configuration.settings import Settings, StoreSettings
from tokenpriority_service.engines.fake import FakeEngine
from tokenpriority_service.teams.caller import OPEN, Caller

MSGPACK_BODIES, JSON_BODIES, COVERAGE_EACH, TOGETHER = 100_000, 12_000, 10, 20
WARM_UP = 8
"""The part of all bodies, one in so many, after which memory must stay as it is."""
SECONDS = 20.0
"""Within which any of these small bodies is answered, however busy the machine: what takes longer hangs."""
GROWTH_BYTES = 16 * 2**20
LIBRARIES: dict[str, Any] = {wire.JSON: msgspec.json, wire.MSGPACK: msgspec.msgpack}

Answer = tuple[int, str, bytes]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """No line per request, and nothing that keeps a hundred thousand of them."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Everybody:
    """Instead of the directory, whose question to the database takes as long as all the rest of a small request."""

    async def caller(self, authorization: str | None, scope: str) -> Caller:
        return OPEN


@contextlib.asynccontextmanager
async def asgi() -> AsyncIterator[Any]:
    """The whole application behind ASGI, without a socket: `await post(path, body, media, accept)`."""
    settings = Settings(store=StoreSettings(memory_bytes=2**20, max_bytes=2**20))
    app = create_app(settings, {"reference": FakeEngine(), "base": FakeEngine(model="base")})

    async def post(path: str, body: bytes, media: str, accept: str) -> Answer:
        requests = [{"type": "http.request", "body": body, "more_body": False}]
        answer: list[Any] = []

        async def receive() -> Any:
            if requests:
                return requests.pop()
            return await asyncio.get_running_loop().create_future()

        async def send(message: Any) -> None:
            answer.append(message)

        headers = [(b"host", b"x"), (b"content-type", media.encode()), (b"accept", accept.encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "server": ("x", 80), "client": ("y", 81), "state": {},
        }  # fmt: skip
        await asyncio.wait_for(app(scope, receive, send), SECONDS)
        start, *rest = answer
        content_type = dict(start["headers"])[b"content-type"].decode()
        return start["status"], content_type, b"".join(each["body"] for each in rest)

    async with app.router.lifespan_context(app):
        app.state.service.directory = Everybody()
        while app.state.service.models.unready:  # noqa: ASYNC110  # there is no event to wait for
            await asyncio.sleep(0.01)
        yield post


def check(answer: Answer) -> str:
    """What every answer is: of the format it says, whole, and of one of the statuses a body can bring about."""
    status, media, content = answer
    assert status in (200, 400, 404, 413, 422), answer
    body = LIBRARIES[media].decode(content)
    if status != 200:
        assert set(body["error"]) == {"type", "message", "request_id"}
        assert len(body["error"]["message"]) < 3000
        return str(body["error"]["type"])
    for result in body["results"]:
        assert ("error" in result) != ("priorities" in result or "stored_tokens" in result), result
        if "priorities" in result:
            assert len(result["priorities"]) == len(result["logprobs"]) == len(result["token_ids"])
    return "scored" if all("error" not in result for result in body["results"]) else "refused"


async def run(make: Callable[[], bytes], media: str, count: int) -> collections.Counter[str]:
    process, seen = psutil.Process(), collections.Counter[str]()
    valid = wire.encode(SEEDS[0], media) if media == wire.JSON else pack(SEEDS[0])

    def memory() -> int:
        gc.collect()
        return int(process.memory_info().rss)

    async with asgi() as post:

        async def scores() -> Any:
            status, _, content = await post("/v1/priorities", valid, media, wire.MSGPACK)
            assert status == 200, content
            body = msgspec.msgpack.decode(content)
            return [{k: v for k, v in result.items() if k != "cached"} for result in body["results"]]

        before = await scores()

        async def one(number: int, body: bytes) -> None:
            path = "/v1/priorities" if number % COVERAGE_EACH else "/v1/coverage"
            accept = wire.JSON if number % 3 == 0 else wire.MSGPACK
            try:
                seen[check(await post(path, body, media, accept))] += 1
            except BaseException:
                print("the body was", body.hex())
                raise

        warm = 0
        for start in range(0, count, TOGETHER):
            if not warm and start >= count // WARM_UP:
                warm = memory()
            await asyncio.gather(*(one(number, make()) for number in range(start, start + TOGETHER)))
        assert warm
        grown = memory() - warm
        assert await scores() == before
    assert grown < GROWTH_BYTES, f"{grown / 2**20:.1f} MiB more after {count} bodies than after the warm-up"
    print(f"{count} bodies: {dict(seen)}, memory {grown / 2**20:+.1f} MiB")
    return seen


KINDS = {"scored", "refused", "malformed_body", "invalid_request", "invalid_parameter", "not_found"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_thousand_msgpack_bodies() -> None:
    seen = asyncio.run(run(Mutants(1).msgpack, wire.MSGPACK, MSGPACK_BODIES))
    assert seen.keys() >= KINDS
    assert min(seen[kind] for kind in KINDS) > 500, seen  # mutants that only ever reach the decoder prove little


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_json_bodies() -> None:
    seen = asyncio.run(run(Mutants(2).json, wire.JSON, JSON_BODIES))
    assert seen.keys() >= KINDS
