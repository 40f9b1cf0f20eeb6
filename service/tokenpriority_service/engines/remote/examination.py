"""Whether a replica may be used, and as what.

Knows what must be asked of it: health, names, version, vocabulary, which of the two ways of scoring it offers, and a
probe. Knows nothing of the other replicas: what it found is compared by `watch`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TypeVar

import msgspec
import numpy as np

from tokenpriority.errors import EngineFault
from tokenpriority_service.engines.contract import probe_ids
from tokenpriority_service.engines.engine import Ids, Job, Rows
from tokenpriority_service.engines.remote import completions, pooling
from tokenpriority_service.engines.remote.agreement import LENGTH
from tokenpriority_service.engines.remote.replica import CHECK_SECONDS, Answer, Refused, Replica

_NO_PLUGIN = "it pools, but not with the tokenpriority plugin (installed there, and TOKENPRIORITY_SCORING=1)"

T = TypeVar("T")


class Unfit(Exception):
    """This replica cannot be used as it is; `field` is the setting that would have to change, or its server."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica says of the model. Equal in all replicas that are used together."""

    evidence: str
    """The way it is asked: `completions.NAME` or `pooling.NAME`."""
    root: str
    """The folder or hub name it was loaded from there."""
    max_model_len: int
    """Longest prompt it scores: over `/v1/completions` one token less than its own limit."""
    version: str
    """Of vLLM."""
    vocab_size: int
    """As the server told, else as it was configured."""
    build: str
    """vLLM's digest of its configuration (dtype, quantisation, parallelism), where it gives one."""

    def difference(self, other: Served) -> str | None:
        """The first field another replica differs in, with both values; None if there is none."""
        mine, theirs = asdict(self), asdict(other)
        return next(
            (f"{name} {theirs[name]!r} instead of {mine[name]!r}" for name in mine if mine[name] != theirs[name]), None
        )


@dataclass(frozen=True, slots=True)
class Findings:
    """What an examination found."""

    served: Served
    probe: Rows
    """[6, T] of the probe."""


class _Card(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


class _Version(msgspec.Struct):
    version: str


class _Tokens(msgspec.Struct):
    tokens: list[int]


@dataclass(frozen=True, slots=True)
class Examiner:
    """Examines replicas for one model.

    `vocab_size` is the configured one; `vocabulary` that of the tokenizer, the next best; `sample` a text and the ids
    our tokenizer makes of it.
    """

    model: str
    vocab_size: int | None = None
    vocabulary: int | None = None
    sample: tuple[str, Ids] | None = None

    async def examine(self, replica: Replica) -> Findings:
        """Raises Unfit, or Unreachable or Refused where another attempt may go better."""
        try:
            return await self._examine(replica)
        except EngineFault as error:
            raise Unfit("urls", error.message) from None
        except Refused as refusal:
            if refusal.passing:
                raise
            field = "api_key" if refusal.status in (401, 403) else "urls"
            raise Unfit(field, str(refusal)) from None

    async def _examine(self, replica: Replica) -> Findings:
        await replica.get("/health")
        root, limit = _card(_read(await replica.get("/v1/models"), _Cards), self.model)
        version = _read(await replica.get("/version"), _Version).version
        await self._check_tokenizer(replica)
        if await self._pools(replica):
            vocab_size = self.vocab_size or self.vocabulary
            if vocab_size is None:
                raise Unfit("vocab_size", "a pooling server does not tell it, and there is no tokenizer: set it")
            served = Served(pooling.NAME, root, limit, version, vocab_size, "")
            ids = probe_ids(min(LENGTH, limit), vocab_size)
            answer = await replica.post(pooling.ROUTE, pooling.body(self.model, ids), tokens=len(ids))
            return Findings(served, pooling.rows(answer, Job(ids)))
        vocab_size = self._vocab_size(await completions.vocab_size(replica, self.model))
        ids = probe_ids(min(LENGTH, limit - 1), vocab_size)
        body = completions.body(self.model, ids, likeliest=1)
        answer = await replica.post(completions.ROUTE, body, tokens=len(ids))
        completions.check_normalised(answer, ids, vocab_size)
        served = Served(completions.NAME, root, limit - 1, version, vocab_size, completions.build(answer))
        return Findings(served, completions.rows(answer, Job(ids)))

    async def _pools(self, replica: Replica) -> bool:
        """Whether it is a pooling server with our plugin; one without it is Unfit."""
        ids = np.zeros(2, np.uint32)
        try:
            answer = await replica.post(pooling.ROUTE, pooling.body(self.model, ids), tokens=len(ids))
            pooling.rows(answer, Job(ids))
        except Refused as refusal:
            if refusal.status in (404, 405, 501):
                return False
            if refusal.passing:
                raise
            raise Unfit("urls", f"{_NO_PLUGIN}: {refusal}") from None
        except EngineFault as error:
            raise Unfit("urls", f"{_NO_PLUGIN}: {error}") from None
        return True

    def _vocab_size(self, told: int | None) -> int:
        if told is None:
            known = self.vocab_size or self.vocabulary
            if known is None:
                raise Unfit("vocab_size", "this server does not tell it, and there is no tokenizer: set it")
            return known
        if self.vocab_size is not None and self.vocab_size > told:
            raise Unfit("vocab_size", f"expected at most {told}, got {self.vocab_size}")
        return self.vocab_size or told

    async def _check_tokenizer(self, replica: Replica) -> None:
        """Text is tokenised here, so it must come out as the server would have it, where the server can say."""
        if self.sample is None:
            return
        text, ids = self.sample
        body = json.dumps({"model": self.model, "prompt": text, "add_special_tokens": True}).encode()
        try:
            answer = await replica.post("/tokenize", body, seconds=CHECK_SECONDS)
        except Refused as refusal:
            if refusal.passing:
                raise
            return  # it runs without a tokenizer
        theirs = _read(answer, _Tokens).tokens
        if theirs != ids.tolist():
            raise Unfit("tokenizer", f"it gives {ids.tolist()} for {text!r}, the server's gives {theirs}")


def _card(cards: _Cards, model: str) -> tuple[str, int]:
    """Where the model was loaded from, and its limit; an adapter has that of its base."""
    known = {card.id: card for card in cards.data}
    card = known.get(model)
    if card is None:
        raise Unfit("model", f"serves {', '.join(map(repr, known)) or 'no model'}, not {model!r}")
    base = known.get(card.parent or "", card)
    limit = card.max_model_len or base.max_model_len
    if limit is None or limit < 3:
        raise Unfit("urls", f"names max_model_len = {limit} for {model!r}; 3 is the least that can be used")
    return card.root or "", limit


def _read(answer: Answer, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(answer.body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unfit("urls", f"is no vLLM server: {error}") from None
