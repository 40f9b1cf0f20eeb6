"""A server of the contract that misbehaves on request, over a real socket.

Only for faults and answers the real service cannot be brought to; everything else is tested against the real one. It
speaks msgpack and token ids alone. Its log-probability of a token is a fixed function of its id; it has the even
sequences of a call stored whole and a half of the others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from tokenpriority import wire
from tokenpriority.errors import ApiError, InvalidSequence, TooLarge
from tokenpriority.methods import describe
from tokenpriority.schema import PriorityRequest

Reply = tuple[int, dict[str, str], bytes] | None
"""Status, headers, body; None drops the connection."""
Handler = Callable[["ContractServer", PriorityRequest], Awaitable[Reply]]


def logprobs(token_ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(T,) float32, NaN at index 0."""
    values = -(token_ids % 97).astype(np.float32) / 10
    values[0] = np.nan
    return values


class ContractServer:
    """Scores by `logprobs`; each of `faults` answers one request in its place, `always` every one."""

    def __init__(self) -> None:
        self.faults: deque[Handler] = deque()
        self.always: Handler | None = None
        self.max_sequences = 1024
        self.fingerprint = "f0"
        self.method_version = 1
        self.model_error: str | None = None
        self.seconds = 0.0
        self.requests: list[PriorityRequest] = []
        self.facts: dict[str, Any] = {}
        """Answers to other questions (GET) by path, without the query."""
        self.asked: list[str] = []
        """Paths of those questions, with the query."""
        self.tokens_in_flight = self.most_tokens = self.requests_in_flight = self.most_requests = self.cancelled = 0
        self.url = ""

    async def answer(self, path: str, body: bytes) -> Reply:
        if path == "/readyz" and self.model_error:
            return 503, {}, b""
        if path in ("/readyz", "/v1/models", "/v1/methods"):
            return 200, {"content-type": wire.MSGPACK}, wire.encode(self._described(path))
        if not body:
            self.asked.append(path)
            return 200, {"content-type": wire.MSGPACK}, wire.encode(self.facts[path.partition("?")[0]])
        request = wire.decode(body, PriorityRequest)
        self.requests.append(request)
        async with self._counted(request):
            handler = self.faults.popleft() if self.faults else self.always
            if handler:
                return await handler(self, request)
            return await (self.cover(request) if path == "/v1/coverage" else self.score(request))

    def _described(self, path: str) -> Any:
        if path == "/v1/methods":
            return describe()
        sizes = {"max_model_len": 1024, "vocab_size": 2**32, "signals": []}
        names = {"name": "reference", "engine": "fake", "model": "m", "dtype": "float32", "tokenizer": ""}
        error, fingerprint = self.model_error, self.fingerprint
        return {"models": [{**names, **sizes, "ready": not error, "error": error, "fingerprint": fingerprint}]}

    async def score(self, request: PriorityRequest, edit: Callable[[dict[str, Any]], Any] | None = None) -> Reply:
        """The right answer, or, after `edit`, a wrong one."""
        if len(request.sequences) > self.max_sequences:
            return await self.refusing(TooLarge(f"at most {self.max_sequences} sequences"))(self, request)
        await asyncio.sleep(self.seconds)
        answer: dict[str, Any] = {"usage": {"tokens": 0, "cached_tokens": 0, "queue_ms": 0.0, "engine_ms": 0.0}}
        answer["model"] = {"name": request.model, "fingerprint": self.fingerprint}
        answer["method"] = {"name": request.method.name, "version": self.method_version, "params": {}}
        answer["results"] = [self._result(item) for item in request.sequences]
        if edit:
            edit(answer)
        return 200, {"content-type": wire.MSGPACK}, wire.encode(answer)

    async def cover(self, request: PriorityRequest, edit: Callable[[dict[str, Any]], Any] | None = None) -> Reply:
        """The right answer to POST /v1/coverage, or, after `edit`, a wrong one."""
        if len(request.sequences) > self.max_sequences:
            return await self.refusing(TooLarge(f"at most {self.max_sequences} sequences"))(self, request)
        await asyncio.sleep(self.seconds)
        results = [self._covered(item) for item in request.sequences]
        right = [result for result in results if "error" not in result]
        answer: dict[str, Any] = {"model": {"name": request.model, "fingerprint": self.fingerprint}, "results": results}
        answer |= {"sequences": len(right), "stored_sequences": sum(r["tokens"] == r["stored_tokens"] for r in right)}
        answer |= {name: sum(r[name] for r in right) for name in ("tokens", "stored_tokens")}
        if edit:
            edit(answer)
        return 200, {"content-type": wire.MSGPACK}, wire.encode(answer)

    @staticmethod
    def refusing(error: ApiError, **headers: str) -> Handler:
        """A fault: an error, as the service writes it."""
        return ContractServer.page(error.status, wire.encode_error(error, "req-1").decode(), wire.JSON, **headers)

    @staticmethod
    def page(status: int, text: str = "<p>Bad\n gateway</p>", kind: str = "text/html", **headers: str) -> Handler:
        """A fault: the page of a proxy."""
        named = {"content-type": kind, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return lambda server, request: asyncio.sleep(0, (status, named, text.encode()))

    @staticmethod
    def edited(edit: Callable[[dict[str, Any]], Any]) -> Handler:
        """A fault: the right answer after an edit."""
        return lambda server, request: server.score(request, edit)

    @staticmethod
    async def dropping(server: ContractServer, request: PriorityRequest) -> Reply:
        """A fault: the connection breaks."""
        return None

    @staticmethod
    async def hanging(server: ContractServer, request: PriorityRequest) -> Reply:
        """A fault: no answer ever."""
        return await asyncio.sleep(3600, None)

    @staticmethod
    def hanging_unless(wanted: Callable[[PriorityRequest], bool]) -> Handler:
        """A fault: no answer to any request but some; which of several arrives first is nobody's to say."""
        return lambda server, request: server.score(request) if wanted(request) else server.hanging(server, request)

    def _result(self, item: Any) -> dict[str, Any]:
        if not isinstance(item.token_ids, bytes) or not item.token_ids:
            return {"id": item.id, "error": {"type": InvalidSequence.type, "message": "token_ids: needs one"}}
        ids = wire.unpack(item.token_ids, wire.U4, "token_ids")
        arrays = {"logprobs": logprobs(ids).tobytes(), "priorities": (np.arange(len(ids)) > 0).astype("<f4").tobytes()}
        return {"id": item.id, "token_ids": item.token_ids, **arrays, "cached": False}

    def _covered(self, item: Any) -> dict[str, Any]:
        result = self._result(item)
        if "error" in result:
            return result
        tokens = len(item.token_ids) // 4
        return {"id": item.id, "tokens": tokens, "stored_tokens": tokens if item.id % 2 == 0 else tokens // 2}

    @asynccontextmanager
    async def _counted(self, request: PriorityRequest) -> AsyncIterator[None]:
        tokens = sum(len(item.token_ids) // 4 for item in request.sequences if isinstance(item.token_ids, bytes))
        self.tokens_in_flight += tokens
        self.requests_in_flight += 1
        self.most_tokens = max(self.most_tokens, self.tokens_in_flight)
        self.most_requests = max(self.most_requests, self.requests_in_flight)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.tokens_in_flight -= tokens
            self.requests_in_flight -= 1

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """HTTP/1.1 with keep-alive; a client that goes away cancels its request."""
        try:
            while True:
                answering = asyncio.ensure_future(self.answer(*await self._read(reader)))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, gone}, return_when=asyncio.FIRST_COMPLETED)
                for other in (answering, gone):
                    other.cancel()
                await asyncio.wait({answering, gone})
                if answering.cancelled() or (reply := answering.result()) is None:
                    return
                status, headers, body = reply
                lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in headers.items())]
                writer.write("\r\n".join([*lines, f"content-length: {len(body)}", "", ""]).encode() + body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client is done
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        return head[0].split()[1], await reader.readexactly(int(headers.get("content-length", "0")))
