"""The remote engine: scores over an existing `vllm serve` by HTTP.

Knows settings, what is said of the model, and the crossing from the caller's loop to the fleet's. Leaves everything
that is asked of a replica to `fleet` and `watch`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tokenpriority.background import Background
from tokenpriority.errors import Unavailable
from tokenpriority_service.engines.contract import score_wanted
from tokenpriority_service.engines.engine import Engine, EngineInfo, Job, Rows
from tokenpriority_service.engines.fingerprint import digest, tokenizer_fingerprint
from tokenpriority_service.engines.remote.examination import Examiner, Served
from tokenpriority_service.engines.remote.fleet import Fleet
from tokenpriority_service.engines.remote.replica import Replica
from tokenpriority_service.engines.remote.rotation import Rotation
from tokenpriority_service.engines.remote.watch import Watch
from tokenpriority_service.engines.remote.way import WAYS

VERSION = 1
"""Part of the fingerprint; raised whenever a change here moves a number."""

_SAMPLE = "Priorities of tokens:\n\t42 naïve cafés, “quoted”; 優先度 🙂"
"""A text that most tokenizers split differently."""


class RemoteEngine:
    """Scores over one or several replicas of a `vllm serve`; owns a thread and its connections until `close`.

    `model` is the name it is served under, an adapter's too; `urls` the replicas' base URLs; `tokenizer` a folder or
    hub name for text requests (None: token ids only). `timeout` bounds one attempt at a request and the wait for a
    first replica, seconds; `retries` is the attempts after the first; `max_concurrent` the requests in flight to each
    replica. `max_model_len` is at most, and by default, what the replicas take; `vocab_size` is needed where they do
    not tell.

    A pooling server with the tokenpriority plugin gives all six signals; any other vLLM gives logprob and rank over
    `/v1/completions`, where the rank counts ties (see `completions`).

    The fingerprint covers the served name, `root` and `max_model_len` there, vLLM's version and its own digest of its
    configuration, the way of asking, the tokenizer and `revision`. It cannot cover the weights, which do not show over
    HTTP: `revision` is the operator's label of them and must be changed when they are.

    Construction blocks until a replica passes (see `examination`). Raises ValueError, naming the field, if none does.
    """

    def __init__(
        self,
        model: str,
        *,
        urls: Sequence[str],
        api_key: str | None = None,
        tokenizer: str | None = None,
        revision: str = "",
        max_model_len: int | None = None,
        vocab_size: int | None = None,
        max_concurrent: int = 32,
        timeout: float = 120.0,
        retries: int = 3,
    ) -> None:
        _check_settings(urls, max_concurrent, timeout, retries)
        self._tokenizer = None if tokenizer is None else _load_tokenizer(tokenizer)
        examiner = _examiner(model, vocab_size, self._tokenizer)
        self._replicas = [
            Replica(_base(url), api_key=api_key, timeout=timeout, max_concurrent=max_concurrent) for url in urls
        ]
        self._rotation = Rotation(self._replicas)
        watch = Watch(self._rotation, examiner)
        self._background = Background(_closing(self._replicas))
        self._closed = False
        try:
            self._background.run(watch.start(timeout))
            self._info = _info(model, watch.served, revision, self._tokenizer, max_model_len)
        except BaseException:
            self._background.close()
            raise
        width = max_concurrent * len(urls)
        self._fleet = Fleet(model, watch.served, self._rotation, retries=retries, width=width)
        self._background.submit(watch.run())

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""
        return self._info

    @property
    def tokenizer(self) -> Any | None:
        """The tokenizer that was named, or None."""
        return self._tokenizer

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """None: an adapter of the remote server is a model by its own name there."""
        return {}

    @property
    def fault(self) -> str | None:
        """Why no replica can be asked now, each with its reason; None if one can."""
        return "the engine is closed" if self._closed else self._rotation.fault

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order, see `Engine.score`."""
        return await score_wanted(jobs, self._info, self._ask)

    async def close(self) -> None:
        """Give up what is in flight and end the thread; idempotent."""
        self._closed = True
        await asyncio.to_thread(self._background.close)

    async def _ask(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """The fleet's results, from its own loop; cancelling the call cancels its requests."""
        if (fault := self.fault) is not None:
            return [Unavailable(fault) for _ in jobs]
        try:
            future = asyncio.wrap_future(self._background.submit(self._fleet.score(jobs)))
        except RuntimeError:  # closed meanwhile
            return [Unavailable("the engine is closed") for _ in jobs]
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError:
            future.cancel()
            raise
        return [Unavailable("the engine is closed") for _ in jobs] if future.cancelled() else future.result()


def _check_settings(urls: Sequence[str], max_concurrent: int, timeout: float, retries: int) -> None:
    if not urls or isinstance(urls, str):
        raise ValueError(f"urls: expected a list of at least one URL, got {urls!r}")
    bases = [_base(url) for url in urls]
    for base in bases:
        if not base.startswith(("http://", "https://")):
            raise ValueError(f"urls: must start with http:// or https://, got {base!r}")
        if bases.count(base) > 1:
            raise ValueError(f"urls: every replica is listed once, {base!r} is there {bases.count(base)} times")
    for name, value, least in (("max_concurrent", max_concurrent, 1), ("retries", retries, 0)):
        if value < least:
            raise ValueError(f"{name}: expected at least {least}, got {value}")
    if not timeout > 0:
        raise ValueError(f"timeout: expected more than 0 seconds, got {timeout}")


def _base(url: str) -> str:
    """The URL above /v1."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _load_tokenizer(name: str) -> Any:
    from tokenpriority_service.engines.checkpoint import load_tokenizer  # here, since token ids need none of it

    try:
        tokenizer = load_tokenizer(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer: {name} cannot be loaded: {error}") from error
    if tokenizer is None:
        raise ValueError(f"tokenizer: there is none in {name}")
    return tokenizer


def _examiner(model: str, vocab_size: int | None, tokenizer: Any | None) -> Examiner:
    if tokenizer is None:
        return Examiner(model, vocab_size)
    sample = np.array(tokenizer(_SAMPLE)["input_ids"], np.uint32)
    return Examiner(model, vocab_size, len(tokenizer), (_SAMPLE, sample))


def _closing(replicas: Sequence[Replica]) -> Any:
    """Closes the replicas' connections; knows nothing of the engine, so that one that is dropped can be collected."""

    async def close() -> None:
        for replica in replicas:
            await replica.aclose()

    return close


def _info(model: str, served: Served, revision: str, tokenizer: Any | None, max_model_len: int | None) -> EngineInfo:
    if max_model_len is not None and not 2 <= max_model_len <= served.max_model_len:
        raise ValueError(f"max_model_len: expected 2 to {served.max_model_len} tokens, got {max_model_len}")
    told = {
        "engine": f"remote {VERSION}",
        "model": model,
        "served": asdict(served),
        "revision": revision,
        "tokenizer": tokenizer_fingerprint(tokenizer),
    }
    return EngineInfo(
        engine="remote",
        model=model,
        dtype="unknown",  # it does not show over HTTP
        max_model_len=max_model_len or served.max_model_len,
        vocab_size=served.vocab_size,
        fingerprint=digest(told),
        signals=WAYS[served.evidence].SIGNALS,
        batches=True,
    )
