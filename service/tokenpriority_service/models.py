"""The named models of a server: loading, ready or failed.

Knows when a model may be used and what it says of itself. Knows nothing of how one is loaded (it is given `load`) or
of what is done with it. One that fails to load is listed with its error and takes no other down.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from tokenpriority.errors import NotFound, Unavailable
from tokenpriority.schema import ModelInfo, ModelList
from tokenpriority_service.admission import Admission
from tokenpriority_service.dispatch import Dispatcher
from tokenpriority_service.engines.engine import Engine
from tokenpriority_service.engines.fingerprint import tokenizer_fingerprint
from tokenpriority_service.settings import ModelSettings
from tokenpriority_service.store import EvidenceStore
from tokenpriority_service.text import Text

Load = Callable[..., Engine]
"""`engines.load_engine`: an engine from its name and settings. It takes as long as it takes, in a thread of its own."""

RETRY_SECONDS = 2.0
"""`retry_after` while a model is loading."""

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Model:
    """A model that is ready."""

    name: str
    engine: Engine
    dispatcher: Dispatcher
    text: Text | None
    """None if the model takes ids only."""
    tokenizer: str
    """Fingerprint of the tokenizer; empty if there is none."""


class Models:
    """The models of a server, by name."""

    def __init__(
        self,
        settings: Mapping[str, ModelSettings],
        store: EvidenceStore,
        admission: Admission,
        *,
        load: Load,
        engines: Mapping[str, Engine],
    ) -> None:
        self._settings = {name: each for name, each in settings.items() if name not in engines}
        self._given = dict(engines)
        self._names = [*settings, *(name for name in engines if name not in settings)]
        self._store = store
        self._admission = admission
        self._load = load
        self._ready: dict[str, Model] = {}
        self._errors: dict[str, str] = {}

    @property
    def unready(self) -> dict[str, str]:
        """Name -> why it cannot be used: that it is loading, or the error it met."""
        return {name: self._errors.get(name, "loading") for name in self._names if name not in self._ready}

    def get(self, name: str, field: str = "model") -> Model:
        """The model of this name. Raises NotFound (listing the known ones) or Unavailable."""
        if name in self._ready:
            return self._ready[name]
        if name not in self._names:
            raise NotFound(f"{field}: no model {name!r}; known models: {', '.join(self._names)}")
        if name in self._errors:
            raise Unavailable(f"{field}: {name!r} failed to load: {self._errors[name]}")
        raise Unavailable(f"{field}: {name!r} is loading", retry_after=RETRY_SECONDS)

    def listing(self) -> ModelList:
        """Every model as GET /v1/models prints it."""
        return ModelList(models=[self._info(name) for name in self._names])

    async def start(self) -> None:
        """Make every model ready or failed; those given as engines at once, the others one after the other.

        Not at the same time: transformers keeps global state while it builds a model.
        """
        for name, engine in self._given.items():
            await self._start(name, functools.partial(_text_side, engine))
        for name, settings in self._settings.items():
            await self._start(name, functools.partial(_loaded, self._load, settings))

    async def close(self) -> None:
        """Stop all work and free the models."""
        for model in self._ready.values():
            await model.dispatcher.close()
            await model.engine.close()

    async def _start(self, name: str, make: Callable[[], tuple[Engine, Text | None, str]]) -> None:
        logger.info("loading model %s", name)
        try:
            engine, text, tokenizer = await _in_thread(make)
        except Exception as error:
            self._errors[name] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            logger.error("model %s failed to load: %s", name, self._errors[name])
            return
        dispatcher = Dispatcher(engine, self._store, self._admission)
        self._ready[name] = Model(name, engine, dispatcher, text, tokenizer)
        logger.info("model %s is ready", name)

    def _info(self, name: str) -> ModelInfo:
        model = self._ready.get(name)
        engine = model.engine if model is not None else self._given.get(name)
        if engine is not None:
            info = engine.info
            return ModelInfo(
                name=name,
                ready=model is not None,
                engine=info.engine,
                model=info.model,
                dtype=info.dtype,
                max_model_len=info.max_model_len,
                vocab_size=info.vocab_size,
                fingerprint=info.fingerprint,
                signals=list(info.signals),
                tokenizer=model.tokenizer if model is not None else "",
                error=self._errors.get(name),
            )
        settings = self._settings[name]
        return ModelInfo(
            name=name,
            ready=False,
            engine=settings.engine,
            model=settings.model,
            dtype=settings.dtype,
            max_model_len=settings.max_model_len or 0,
            vocab_size=0,
            fingerprint="",
            signals=[],
            tokenizer="",
            error=self._errors.get(name),
        )


def _loaded(load: Load, settings: ModelSettings) -> tuple[Engine, Text | None, str]:
    return _text_side(load(settings.engine, **settings.model_dump(exclude={"engine"})))


def _text_side(engine: Engine) -> tuple[Engine, Text | None, str]:
    """The engine with its text side and its tokenizer's fingerprint; slow, since the tokenizer may be read only now."""
    tokenizer = engine.tokenizer
    return engine, None if tokenizer is None else Text(tokenizer), tokenizer_fingerprint(tokenizer)


async def _in_thread(make: Callable[[], T]) -> T:
    """Run `make` in a daemon thread: unlike a pool's, it does not keep a process alive that is told to stop."""
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # from here on a result may be set even if nobody waits for it any more

    def run() -> None:
        try:
            done.set_result(make())
        except BaseException as error:  # it must reach the waiting task, whatever it is
            done.set_exception(error)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    return await asyncio.wrap_future(done)
