"""The fake engine: evidence of a made-up language model, without weights.

Knows a closed form that is a true distribution over the vocabulary at every position, so that everything downstream
can be tried, tested and timed on coherent numbers. Knows nothing of language.

The form: a hash of the model's name and of the tokens before a position picks a shape and a rotation. A token's place
is its id rotated by that much; places fall into levels of g = 1 or 2 tied tokens, and each token of level j has
probability proportional to exp(-c j), with c and g of the shape.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from tokenpriority.errors import InvalidSequence, Unavailable
from tokenpriority.evidence import ENGINE_SIGNALS, SIGNALS
from tokenpriority_service.engines import byte_tokenizer
from tokenpriority_service.engines.contract import check_job
from tokenpriority_service.engines.engine import Engine, EngineInfo, Ids, Job, Rows

VERSION = 1
"""Part of the fingerprint; raised whenever a change here moves a number."""

_SHAPES = 8
_TOP = 20
_BELOW_ONE = 1 - 2.0**-24  # the largest float32 below 1

# Of a 32-bit multiplicative hash; the step between positions is even, so that every factor is odd.
_ONE, _STEP, _MIX = np.uint32(1), np.uint32(0x9E3779B2), np.uint32(0x85EBCA6B)


class FakeEngine:
    """A deterministic function of token ids in the shape of an engine; another `model` name is another function.

    `vocab_size` is even and at least that of the byte-level tokenizer, which serves text and messages if transformers
    is installed. Each call of `score` takes at least `delay` seconds. `fail` is asked of every job and may name the
    exception it is to meet.
    """

    def __init__(
        self,
        *,
        model: str = "fake",
        vocab_size: int = 512,
        max_model_len: int = 32_768,
        delay: float = 0.0,
        fail: Callable[[Job], Exception | None] | None = None,
    ) -> None:
        if vocab_size % 2 or vocab_size < byte_tokenizer.VOCAB_SIZE:
            raise ValueError(
                f"vocab_size: expected an even number of at least {byte_tokenizer.VOCAB_SIZE}, got {vocab_size}"
            )
        if max_model_len < 2:
            raise ValueError(f"max_model_len: expected at least 2, got {max_model_len}")
        self._delay = delay
        self._fail = fail
        self._table = _table(vocab_size)
        self._closed = False
        digest = hashlib.blake2b(f"fake {VERSION} {vocab_size} {model}".encode(), digest_size=16)
        self._salt = np.frombuffer(digest.digest()[:4], "<u4")
        self._info = EngineInfo(
            engine="fake",
            model=model,
            dtype="float32",
            max_model_len=max_model_len,
            vocab_size=vocab_size,
            fingerprint=digest.hexdigest(),
            signals=ENGINE_SIGNALS,
        )

    @property
    def info(self) -> EngineInfo:
        """Constant after construction."""
        return self._info

    @cached_property
    def tokenizer(self) -> Any | None:
        """One token per byte, with a chat template; None if transformers is not installed."""
        return byte_tokenizer.byte_tokenizer() if find_spec("transformers") else None

    @property
    def adapters(self) -> Mapping[str, Engine]:
        """None."""
        return {}

    @property
    def fault(self) -> str | None:
        """None: what `fail` names is each job's."""
        return None

    async def score(self, jobs: Sequence[Job]) -> list[Rows | Exception]:
        """Evidence of each job in order, see `Engine.score`."""
        await asyncio.sleep(self._delay)
        refusals = [self._refusal(job) for job in jobs]
        rows = iter(self._score([job for job, refusal in zip(jobs, refusals, strict=True) if refusal is None]))
        return [next(rows) if refusal is None else refusal for refusal in refusals]

    async def close(self) -> None:
        """Score nothing more; idempotent."""
        self._closed = True

    def _refusal(self, job: Job) -> Exception | None:
        if self._closed:
            return Unavailable("the engine is closed")
        if self._fail is not None and (failure := self._fail(job)) is not None:
            return failure
        try:
            check_job(job, self._info)
        except InvalidSequence as error:
            return error
        return None

    def _score(self, jobs: list[Job]) -> list[Rows]:
        """All jobs of a call in one pass: numpy's cost per operation is then paid once."""
        if not jobs:
            return []
        lengths = [len(job.token_ids) for job in jobs]
        entries = self._entries([job.token_ids for job in jobs], lengths)
        evidence = self._table[: len(SIGNALS)].take(entries, axis=1)
        results = []
        for job, (start, end) in zip(jobs, pairwise(accumulate(lengths, initial=0)), strict=True):
            rows = np.empty((len(job.rows), end - start), np.float32)
            rows[: len(SIGNALS)] = evidence[:, start:end]
            rows[len(SIGNALS) :] = self._table[len(SIGNALS) : len(rows)].take(entries[start:end], axis=1)
            rows[:, : job.score_from] = np.nan
            results.append(rows)
        return results

    def _entries(self, sequences: list[Ids], lengths: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Column of the table for each position of the joined sequences; 32-bit arithmetic wraps on purpose."""
        ids = np.concatenate(sequences)
        starts = np.cumsum([0, *lengths[:-1]])
        position = np.arange(len(ids), dtype=np.uint32) - np.repeat(starts.astype(np.uint32), lengths)
        own = (ids + _ONE) * (position * _STEP + _ONE)
        context = np.cumsum(own, dtype=np.uint32)
        context -= own
        context -= np.repeat(context[starts], lengths)
        context += self._salt
        context ^= context >> np.uint32(16)
        context *= _MIX
        context ^= context >> np.uint32(15)

        width = self._table.shape[1] // _SHAPES
        entries = np.multiply(context, np.uint64(self._info.vocab_size), dtype=np.uint64)
        entries >>= np.uint64(32)  # the rotation
        entries += ids
        entries += (context % np.uint32(_SHAPES)) * np.uint32(width)
        return entries.view(np.int64)


def _table(vocab_size: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[7, shapes * 2V]: the evidence of every place of every shape, `SIGNALS` and then `OPTIONAL_SIGNALS`.

    Each shape stands there twice, so that an id plus a rotation below V needs no wrapping around.
    """
    shapes = [_shape(vocab_size, number) for number in range(_SHAPES)]
    return np.concatenate([each for shape in shapes for each in (shape, shape)], axis=1, dtype=np.float32)


def _shape(vocab_size: int, number: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """[7, V]: the evidence of every place of one shape, from steep (nearly one token) to flat (nearly uniform)."""
    group = 1 + number % 2
    level = np.arange(vocab_size) // group
    decay = 512 / 8 ** (number // 2) / level[-1]
    logprob = -decay * level - np.log(np.exp(-decay * level).sum())
    mass = np.exp(logprob)
    above = np.concatenate([[0], np.cumsum(mass)])[level * group]
    tied = (group - 1) * mass
    entropy, top = -(mass * logprob).sum(), logprob[0]
    first = mass[:_TOP] / mass[:_TOP].sum()  # places go from likely to unlikely
    return np.stack(
        [
            logprob,
            np.full(vocab_size, entropy),
            np.full(vocab_size, top),
            1.0 + level * group,
            np.minimum(above, np.minimum(1 - (mass + tied), _BELOW_ONE)),
            tied,
            np.full(vocab_size, -(first * np.log(first)).sum()),
        ]
    )
