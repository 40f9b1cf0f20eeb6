"""Where a batch's weights come from: the scoring server, a store, a ready column, or a method that needs no model.

Knows how to ask for a batch's documents and to check what comes back. Knows nothing of losses, spans or the trainer.
A source is one generator: it takes batches and gives each back with one array of weights per document.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokenpriority import SequenceErrors
from tokenpriority.depth import Depth, Wanted
from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority_trainer.collator import DOCUMENTS, LOGPROBS, PRIORITIES
from tokenpriority_trainer.documents import Document, Floats
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.projector import Projector, projected
from tokenpriority_trainer.store import Provenance, Sent, Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenpriority import Client, Scores, Source

Batch = dict[str, Any]
Asked = tuple[Document, Sent]
"""A document and what is sent of it."""
Weighed = Generator[tuple[Batch, list[Floats]], None, None]

QUESTIONS = "questions"
"""Key of a batch under which it carries what was asked about its documents, while it is on its way."""
STORED = "stored"
"""The same of what a store held of them: one Scores or None per document that trains something."""


class PrioritySource(Protocol):
    """Gives every batch the weights of its documents.

    Those whose weights a method makes have it and its parameters as `made_by`; a trainer that is given no weighting
    takes the method's own.
    """

    wait_seconds: float
    """Seconds spent waiting for weights so far, over all streams."""

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """Each batch, in order, with one float32 array (T,) per entry of its `documents`, in their order.

        The values of untrained tokens do not matter. Closing the generator ends whatever it runs. Raises WeightError
        if a document's weights are missing or belong to other tokens. A source that knows the reference's log-probs
        leaves them in the batch under LOGPROBS.
        """
        ...


class ServerSource:
    """Asks the scoring server, `depth` batches ahead (see `Client.prefetch`), in the client's background thread.

    Documents that train nothing are not sent. `model` and `method` are names on the server. With the student's
    `tokenizer` documents are sent as text, and the scores are projected from the tokens that the server's model makes
    of it (see `projector.py`); without it, as token ids, which must then mean the same to both models.

    With a `store`, a file, only what is not in it is asked, and the answers are kept in it; see `store.py`. Raises
    ConfigError if that file holds scores of another question, or a tokenizer is given too; with a store the client's
    errors if the server does not answer.
    """

    def __init__(
        self,
        client: Client,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        *,
        model: str | None = None,
        depth: Wanted = "auto",
        tokenizer: PreTrainedTokenizerBase | None = None,
        store: str | Path | None = None,
    ) -> None:
        self.asked: Source = client.source(method, params, model=model)
        """What is asked of the server."""
        self.made_by = self.asked.method, self.asked.params
        self.store: Store | None = None
        if store is not None:
            if tokenizer is not None:
                raise ConfigError("store: keeps scores of the student's own tokens; leave out tokenizer")
            self.store = Store.open(store, Provenance.of_server(client, self.asked.model, *self.made_by))
        self._tokenizer = tokenizer
        self._projector: Projector | None = None
        self._depth = Depth(depth)
        self.wait_seconds = 0.0

    @property
    def projects(self) -> bool:
        """Whether text is sent, and the scores are projected; else the student's token ids."""
        return self._tokenizer is not None

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """See `PrioritySource`. Raises WeightError also for a document the server refuses; else the client's errors."""
        before = self.wait_seconds
        asked: deque[list[Asked]] = deque()
        pick = self._pick()

        def sequences(batch: Batch) -> list[Sent]:
            asked.append(pick(batch))
            return [sent for _, sent in asked[-1]]

        with self.asked.client.prefetch(
            batches,
            sequences=sequences,
            method=self.asked.method,
            params=self.asked.params,
            model=self.asked.model,
            depth=self._depth,
            offsets=self.projects,
        ) as prefetch:
            for batch, answers in _named(prefetch, asked):
                self.wait_seconds = before + prefetch.wait_seconds
                sent = [each for _, each in asked.popleft()]
                scores = projected(batch.pop(QUESTIONS), answers) if QUESTIONS in batch else answers
                found = batch.pop(STORED, None)
                weights = _weighed(batch, scores if found is None else _merged(found, answers))
                if self.store is not None:
                    self.store.keep(sent, answers)
                yield batch, weights

    def _pick(self) -> Callable[[Batch], list[Asked]]:
        """What is asked of a batch: by tokens, or by text."""
        if self.store is not None:
            return partial(_unstored, self.store)
        if self._tokenizer is None:
            return _by_tokens
        if self._projector is None:
            self._projector = Projector(self.asked.client, self.asked.model, self._tokenizer)
        projector = self._projector

        def by_text(batch: Batch) -> list[Asked]:
            wanted = _wanted(batch[DOCUMENTS])
            batch[QUESTIONS] = questions = [projector.question(document) for document in wanted]
            pairs = zip(wanted, questions, strict=True)
            return [(document, question.sequence) for document, question in pairs if question.start is not None]

        return by_text


class StoredSource:
    """Takes every weight from a store and asks no server; the trainer checks beforehand that all are there."""

    wait_seconds = 0.0

    def __init__(self, store: Store) -> None:
        self.store = store
        self.made_by = store.provenance.method, store.provenance.params

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """See `PrioritySource`. Raises WeightError if the store lacks a document."""
        for batch in batches:
            found = self.store.find(sequences(batch))
            for document, scores in zip(_wanted(batch[DOCUMENTS]), found, strict=True):
                if scores is None:
                    raise WeightError(f"{document}: not in the store {self.store.path}")
            yield batch, _weighed(batch, [scores for scores in found if scores is not None])


class ColumnSource:
    """Takes the dataset's own `priorities` column."""

    wait_seconds = 0.0

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """See `PrioritySource`. Raises WeightError if a batch has no such column."""
        for batch in batches:
            if PRIORITIES not in batch:
                raise WeightError(f"the dataset has no {PRIORITIES!r} column, the source of its weights")
            column = batch[PRIORITIES].cpu().numpy()
            yield batch, [column[d.row, d.start : d.end] for d in batch[DOCUMENTS]]


class LocalSource:
    """Applies a method that reads no model: `uniform` (weight 1 everywhere), or `spans`.

    Raises ConfigError for a method that needs a server.
    """

    wait_seconds = 0.0

    def __init__(self, method: str = "uniform", params: Mapping[str, Any] | None = None) -> None:
        self.made_by = method, dict(params or {})
        self._method = get_method(method)
        self._params = self._method.parse(params)
        needs = self._method.needs(self._params)
        if needs:
            raise ConfigError(f"method {method!r} reads {' and '.join(needs)}: it needs a scoring server (its url)")

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """See `PrioritySource`."""
        for batch in batches:
            yield batch, [self._weights(document) for document in batch[DOCUMENTS]]

    def _weights(self, document: Document) -> Floats:
        weights: Floats = prioritise(self._method, self._params, Inputs(document.trained), xp=np).astype(np.float32)
        return weights


def _wanted(documents: list[Document]) -> list[Document]:
    return [document for document in documents if document.trained.any()]


def sequences(batch: Batch) -> list[Sent]:
    """What is sent of a batch: the tokens of every document that trains something, and which of them do."""
    return [sent for _, sent in _by_tokens(batch)]


def _by_tokens(batch: Batch) -> list[Asked]:
    wanted = _wanted(batch[DOCUMENTS])
    return [(each, {"token_ids": each.token_ids, "mask": each.trained.astype(np.uint8)}) for each in wanted]


def _unstored(store: Store, batch: Batch) -> list[Asked]:
    """The part of that which the store does not hold; what it holds is left in the batch."""
    every = _by_tokens(batch)
    batch[STORED] = store.find([sent for _, sent in every])
    return [asked for asked, known in zip(every, batch[STORED], strict=True) if known is None]


def _named(prefetch: Iterable[tuple[Batch, list[Scores]]], asked: deque[list[Asked]]) -> Iterator[Any]:
    """What is prefetched; the first of `asked` is what was asked of it. A document that is refused is named."""
    try:
        yield from prefetch
    except SequenceErrors as error:
        first = min(error.failures)
        document = asked[0][first][0]
        begins = ", ".join(str(token) for token in document.token_ids[:8])
        raise WeightError(f"{document}, whose token ids begin {begins}: {error.failures[first]}") from error


def _merged(found: list[Scores | None], answers: list[Scores]) -> list[Scores]:
    """What was found, with the answers in the gaps, in order; as many as there are, which `_matched` judges."""
    fresh = iter(answers)
    filled = [next(fresh, None) if known is None else known for known in found]
    return [scores for scores in (*filled, *fresh) if scores is not None]


def _weighed(batch: Batch, scores: list[Scores]) -> list[Floats]:
    """The weights of the batch's documents; their log-probs are left in it."""
    weights = _matched(batch[DOCUMENTS], scores)
    batch[LOGPROBS] = _logprobs(batch[DOCUMENTS], scores)
    return weights


def _matched(documents: list[Document], scores: list[Scores]) -> list[Floats]:
    """The server's weights by document; zeros for a document that was not sent."""
    if len(scores) != len(_wanted(documents)):
        raise WeightError(f"{len(_wanted(documents))} documents were sent but scores of {len(scores)} came back")
    found = iter(scores)
    return [_checked(document, next(found)) if document.trained.any() else _zeros(document) for document in documents]


def _logprobs(documents: list[Document], scores: list[Scores]) -> list[Floats]:
    """The reference's log-probs by document, for methods that read them too; NaN for a document that was not sent."""
    found = iter(scores)
    nothing = [np.full(document.end - document.start, np.nan, np.float32) for document in documents]
    return [next(found).logprobs if d.trained.any() else none for d, none in zip(documents, nothing, strict=True)]


def _checked(document: Document, scores: Scores) -> Floats:
    if not np.array_equal(scores.token_ids, document.token_ids):
        raise WeightError(f"{document}: the server scored other tokens than were sent")
    return np.asarray(scores.priorities, np.float32)


def _zeros(document: Document) -> Floats:
    return np.zeros(document.end - document.start, np.float32)
