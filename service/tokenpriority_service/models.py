"""The named models of a server: loading, ready, out of order for a while, or failed.

Knows when a model may be used and what it says of itself. Knows nothing of how one is loaded (it is given `load`) or
of what is done with it (it is given `feed`). One that fails is listed with its error and takes no other down, save its
own adapters: they are models of their own by name, on the weights and the feed of their host.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tokenpriority.errors import NotFound, Unavailable
from tokenpriority.schema import ModelInfo, ModelList
from tokenpriority_service.configuration.settings import ModelSettings
from tokenpriority_service.engines import Engine, Load
from tokenpriority_service.engines.engine import RETRY_SECONDS
from tokenpriority_service.engines.fingerprint import tokenizer_fingerprint
from tokenpriority_service.requests.text import Text
from tokenpriority_service.scheduling.dispatch import Dispatcher
from tokenpriority_service.scheduling.feed import Feed

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
        feed: Callable[[str, Engine], Feed],
        *,
        load: Load,
        engines: Mapping[str, Engine],
    ) -> None:
        self._settings = {name: each for name, each in settings.items() if name not in engines}
        self._given = dict(engines)
        announced: dict[str, Sequence[str]] = {
            **{name: settings[name].names for name in self._settings},
            **{name: tuple(engine.adapters) for name, engine in engines.items()},
        }
        self._hosts = _hosts({name: announced[name] for name in [*settings, *announced]})
        self._feed = feed
        self._load = load
        self._ready: dict[str, Model] = {}
        self._errors: dict[str, str] = {}

    @property
    def unready(self) -> dict[str, str]:
        """Name -> why it cannot be used now: that it is loading, the error it met, or what is wrong with its engine."""
        reasons = {}
        for name, host in self._hosts.items():
            model = self._ready.get(name)
            reason = self._errors.get(host, "loading") if model is None else model.engine.fault
            if reason is not None:
                reasons[name] = reason
        return reasons

    @property
    def names(self) -> tuple[str, ...]:
        """Every model, whatever its state."""
        return tuple(self._hosts)

    @property
    def ready(self) -> Mapping[str, Model]:
        """The models that have been loaded."""
        return self._ready

    def get(self, name: str, field: str = "model") -> Model:
        """The model of this name. Raises NotFound (listing the known ones) or Unavailable."""
        if name not in self._hosts:
            raise NotFound(f"{field}: no model {name!r}; known models: {', '.join(self._hosts)}")
        if name in self._ready:
            model = self._ready[name]
            if (fault := model.engine.fault) is not None:
                raise Unavailable(f"{field}: {name!r} cannot score now: {fault}", retry_after=RETRY_SECONDS)
            return model
        if (error := self._errors.get(self._hosts[name])) is not None:
            raise Unavailable(f"{field}: {name!r} failed to load: {error}")
        raise Unavailable(f"{field}: {name!r} is loading", retry_after=RETRY_SECONDS)

    def listing(self) -> ModelList:
        """Every model as GET /v1/models prints it."""
        return ModelList(models=[self._info(name, host) for name, host in self._hosts.items()])

    async def start(self) -> None:
        """Make every model ready or failed; those given as engines at once, the others one after the other.

        Not at the same time: transformers keeps global state while it builds a model.
        """
        for name, engine in self._given.items():
            await self._start(name, functools.partial(_given, engine))
        for name, settings in self._settings.items():
            await self._start(name, functools.partial(_loaded, self._load, settings))

    async def close(self) -> None:
        """Stop all work and free the models."""
        for model in self._ready.values():
            await model.dispatcher.close()
        for name, model in self._ready.items():
            if self._hosts[name] == name:  # which closes its adapters
                await _closed(name, model.engine)

    async def _start(self, host: str, make: Callable[[], Engine]) -> None:
        """Make a model and its adapters ready together, or failed together."""
        logger.info("loading model %s", host)
        engine: Engine | None = None
        try:
            engine = await _in_thread(make, abandoned=_close)
            models = await _in_thread(functools.partial(self._models, host, engine))
        except Exception as error:
            self._errors[host] = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            logger.error("model %s failed to load: %s", host, self._errors[host])
            await _closed(host, engine)
            return
        except BaseException:  # the server is stopping
            await _closed(host, engine)
            raise
        feed = self._feed(host, engine)
        for name, (each, text, tokenizer) in models.items():
            self._ready[name] = Model(name, each, Dispatcher(feed, each, name=name), text, tokenizer)
            logger.info("model %s is ready", name)

    def _models(self, host: str, engine: Engine) -> dict[str, tuple[Engine, Text | None, str]]:
        """A loaded engine and its adapters by name, with their text sides. Raises ValueError if names do not match."""
        announced = {name for name, its_host in self._hosts.items() if its_host == host} - {host}
        if set(engine.adapters) != announced:
            raise ValueError(f"adapters: expected {sorted(announced)}, the engine has {sorted(engine.adapters)}")
        return {name: _text_side(each) for name, each in {host: engine, **engine.adapters}.items()}

    def _info(self, name: str, host: str) -> ModelInfo:
        model = self._ready.get(name)
        if model is not None:
            return _info_of(name, model.engine, ready=model.engine.fault is None, tokenizer=model.tokenizer)
        error = self._errors.get(host)
        if host in self._given:
            engine = self._given[host]
            return _info_of(name, engine if name == host else engine.adapters[name], error=error)
        settings = self._settings[host]
        return ModelInfo(
            name=name,
            ready=False,
            engine=settings.engine,
            model=settings.model if name == host else str(getattr(settings, "adapters", {})[name]),
            dtype=getattr(settings, "dtype", ""),
            max_model_len=settings.max_model_len or 0,
            vocab_size=0,
            fingerprint="",
            signals=[],
            tokenizer="",
            error=error,
        )


def _hosts(announced: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Every name -> the model it is loaded with: itself, or the one whose adapter it is. `announced` are the adapters
    of each model. Raises ValueError if two models have one name.
    """
    hosts = {}
    for host, adapters in announced.items():
        for name in (host, *adapters):
            if name in hosts or (name != host and name in announced):
                raise ValueError(f"models.{host}.adapters.{name}: another model has this name already")
            hosts[name] = host
    return hosts


def _info_of(
    name: str, engine: Engine, *, ready: bool = False, tokenizer: str = "", error: str | None = None
) -> ModelInfo:
    info = engine.info
    return ModelInfo(
        name=name,
        ready=ready,
        engine=info.engine,
        model=info.model,
        dtype=info.dtype,
        max_model_len=info.max_model_len,
        vocab_size=info.vocab_size,
        fingerprint=info.fingerprint,
        signals=list(info.signals),
        tokenizer=tokenizer,
        error=error,
        fault=engine.fault,
    )


def _loaded(load: Load, settings: ModelSettings) -> Engine:
    return load(settings.engine, **settings.model_dump(exclude={"engine"}))


def _given(engine: Engine) -> Engine:
    return engine


def _text_side(engine: Engine) -> tuple[Engine, Text | None, str]:
    """The engine with its text side and its tokenizer's fingerprint; slow, since the tokenizer may be read only now."""
    tokenizer = engine.tokenizer
    return engine, None if tokenizer is None else Text(tokenizer), tokenizer_fingerprint(tokenizer)


async def _closed(name: str, engine: Engine | None) -> None:
    """Free an engine, if there is one; that it cannot even be closed is nobody else's trouble."""
    try:
        if engine is not None:
            await engine.close()
    except Exception:
        logger.exception("model %s could not be closed", name)


def _close(engine: Engine) -> None:
    asyncio.run(engine.close())


async def _in_thread(make: Callable[[], T], abandoned: Callable[[T], None] | None = None) -> T:
    """Run `make` in a daemon thread: unlike a pool's, it does not keep a process alive that is told to stop. What it
    makes when nobody waits any more goes to `abandoned`.
    """
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    done.set_running_or_notify_cancel()  # from here on a result may be set even if nobody waits for it any more

    left = threading.Event()

    def run() -> None:
        try:
            made = make()
        except BaseException as error:  # it must reach the waiting task, whatever it is
            done.set_exception(error)
            return
        if left.is_set() and abandoned is not None:
            abandoned(made)
        done.set_result(made)

    threading.Thread(target=run, name="load-model", daemon=True).start()
    try:
        return await asyncio.wrap_future(done)
    except asyncio.CancelledError:
        left.set()
        raise
