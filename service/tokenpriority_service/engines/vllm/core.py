"""One engine core: vLLM running beside the server, started again when it dies.

Knows processes, their environment, restarts and their pace. Knows nothing of evidence: it is given what to check before
the core may be used. vLLM's front end lives on an event loop in a thread of its own, so that the server's loop has its
turns; its engine core is a process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from tokenpriority.errors import ApiError, EngineFault, Unavailable
from tokenpriority_service.engines.vllm.internals import AsyncEngineArgs, AsyncLLM, EngineDeadError

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a restart: doubled at each, back to the first once a core has lived for the longest."""

_POLL = 0.25
_TELLING_SECONDS = 2.0
"""A dead core's front end gets so long to tell each caller by itself; who then still waits is told by us."""
_DIED = "the engine core died and is being restarted"
_CLOSED = "the engine is closed"
_SHUTDOWN_SECONDS = 15.0
"""A core that is told to end gets so long; vLLM's default kills it in the midst of ending its workers."""
_logger = logging.getLogger(__name__)
_environment = threading.Lock()


class Core:
    """An AsyncLLM that comes back.

    `arguments` are AsyncEngineArgs; `environment` is set (None: unset) while its processes are started, for them to
    inherit; `check` is awaited with each new AsyncLLM and raises ValueError if it must not be used.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str | None],
        check: Callable[[Any], Awaitable[None]],
        *,
        name: str,
    ) -> None:
        self._arguments = arguments
        self._environment = environment
        self._check = check
        self._name = name
        self._llm: Any = None
        self._fault: str | None = "starting"
        self._pause = FIRST_PAUSE
        self._watch: asyncio.Task[None] | None = None
        self._waiting: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"vllm {name}", daemon=True)
        self._thread.start()

    def start(self) -> None:
        """Block until the first core is up and checked. Raises ValueError with what it met."""
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    @property
    def fault(self) -> str | None:
        """Why it cannot be used now, or None."""
        llm = self._llm
        # A death is known to vLLM before the next look at it.
        return _DIED if self._fault is None and llm is not None and llm.errored else self._fault

    @property
    def config(self) -> Any:
        """vLLM's configuration of the running core."""
        return self._llm.vllm_config

    async def call(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Run `work(llm)` on the core's loop, from any other; cancelling the call cancels the work.

        Raises Unavailable if the core is down, or goes down and leaves the work waiting.
        """
        if self.fault is not None:
            raise self._unavailable()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._answered(work), self._loop))

    async def _answered(self, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        answer = asyncio.create_task(work(self._llm))
        self._waiting.add(answer)
        answer.add_done_callback(self._waiting.discard)
        try:
            return await answer
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():  # by who asked, not by `_release`
                raise
            raise self._unavailable() from None

    def explain(self, error: Exception) -> ApiError:
        """What a request is told that met `error` in vLLM: that the core died, or that it failed on this one."""
        if isinstance(error, EngineDeadError):
            return self._unavailable()
        return EngineFault(f"vLLM failed on this sequence: {type(error).__name__}: {error}")

    def stop(self) -> None:
        """Stop the processes and the thread, blocking; idempotent."""
        if self._closed:
            return
        self._closed, self._fault = True, _CLOSED
        ending = asyncio.run_coroutine_threadsafe(self._shutdown(), self._loop)
        ending.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        try:
            ending.result(2 * _SHUTDOWN_SECONDS)
        except TimeoutError:
            # It is in the midst of loading a model, which cannot be stopped; its process ends with this one.
            _logger.warning("model %s: still starting, not waited for", self._name)
        else:
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _unavailable(self) -> Unavailable:
        return Unavailable(f"model {self._name}: {self.fault or _DIED}", retry_after=FIRST_PAUSE)

    async def _open(self) -> None:
        try:
            with _spawning(self._environment):
                llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._arguments))
        except Exception as error:
            raise self._refusal(error) from error
        try:
            await self._check(llm)
        except BaseException as error:
            llm.shutdown(_SHUTDOWN_SECONDS)
            if isinstance(error, ValueError) or not isinstance(error, Exception):
                raise
            raise self._refusal(error) from error
        self._llm, self._fault = llm, None
        self._watch = asyncio.create_task(self._supervise())

    def _refusal(self, error: Exception) -> ValueError:
        """What vLLM met at start, in our words as far as it is known."""
        if isinstance(error, ValidationError):
            reason = "; ".join(".".join([*map(str, each["loc"]), each["msg"]]) for each in error.errors())
        else:
            reason = f"{type(error).__name__}: {error}"
        return ValueError(f"model: vLLM cannot run {self._name}: {reason}")

    async def _supervise(self) -> None:
        """Until the core dies; then bring it back."""
        born = time.monotonic()
        while not self._llm.errored:  # noqa: ASYNC110  # vLLM sets a flag, no event
            await asyncio.sleep(_POLL)
        lived = time.monotonic() - born
        if lived >= LONGEST_PAUSE:
            self._pause = FIRST_PAUSE
        _logger.error("model %s: the engine core died after %.0f s", self._name, lived)
        self._fault = _DIED
        await self._release(_TELLING_SECONDS)
        with contextlib.suppress(Exception):  # of a dead core nothing but its sockets is left
            self._llm.shutdown()
        while not await self._came_back():
            pass
        _logger.warning("model %s: the engine core is back", self._name)

    async def _release(self, seconds: float) -> None:
        """End all work of this core, after giving vLLM so long to: shut down, it tells its callers nothing."""
        if self._waiting:
            await asyncio.wait(list(self._waiting), timeout=seconds)
        for answer in list(self._waiting):
            answer.cancel()
        await asyncio.sleep(0)

    async def _came_back(self) -> bool:
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        try:
            await self._open()
        except Exception as error:
            self._fault = f"the engine core died and did not come back: {error}; next try in {self._pause:.0f} s"
            _logger.exception("model %s: restart failed, next try in %.0f s", self._name, self._pause)
            return False
        return True

    async def _shutdown(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._llm is not None:
            self._llm.shutdown(_SHUTDOWN_SECONDS)  # on this thread, or its listeners would report a death
            self._llm = None  # or it would be shut down once more when the interpreter ends, and fail
        await self._release(0)
        self._fault = _CLOSED  # a restart that was under way may have cleared it
        # What vLLM left on the loop would be reported as destroyed while pending.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)


@contextlib.contextmanager
def _spawning(environment: Mapping[str, str | None]) -> Iterator[None]:
    """The process environment with these variables, for one start at a time."""
    with _environment:
        before = {name: os.environ.get(name) for name in environment}
        _set(environment)
        try:
            yield
        finally:
            _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
