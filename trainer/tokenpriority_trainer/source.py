"""Where a batch's weights come from: the scoring server, a ready column, or a method that needs no model.

Knows how to ask for a batch's documents and to check what comes back. Knows nothing of losses, spans or the trainer.
A source is one generator: it takes batches and gives each back with one array of weights per document.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority_trainer.collator import DOCUMENTS, LOGPROBS, PRIORITIES
from tokenpriority_trainer.documents import Document, Floats
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.projector import Projector, projected

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenpriority import Client, Scores

Batch = dict[str, Any]
Weighed = Generator[tuple[Batch, list[Floats]], None, None]

QUESTIONS = "questions"
"""Key of a batch under which it carries what was asked about its documents, while it is on its way."""


class PrioritySource(Protocol):
    """Gives every batch the weights of its documents."""

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
    """Asks the scoring server, `depth` batches ahead, in the client's background thread.

    Documents that train nothing are not sent. `model` and `method` are names on the server. With the student's
    `tokenizer` documents are sent as text, and the scores are projected from the tokens that the server's model makes
    of it (see `projector.py`); without it, as token ids, which must then mean the same to both models.
    """

    def __init__(
        self,
        client: Client,
        method: str = "uniform",
        params: Mapping[str, Any] | None = None,
        *,
        model: str | None = None,
        depth: int = 8,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._projector: Projector | None = None
        self._method, self._params, self._model, self._depth = method, dict(params or {}), model, depth
        self.wait_seconds = 0.0

    def stream(self, batches: Iterable[Batch]) -> Weighed:
        """See `PrioritySource`. Raises the client's errors where the server refuses a document."""
        before = self.wait_seconds
        with self._client.prefetch(
            batches,
            sequences=self._sequences(),
            method=self._method,
            params=self._params,
            model=self._model,
            depth=self._depth,
            offsets=self._tokenizer is not None,
        ) as prefetch:
            for batch, answers in prefetch:
                self.wait_seconds = before + prefetch.wait_seconds
                scores = projected(batch.pop(QUESTIONS), answers) if QUESTIONS in batch else answers
                weights = _matched(batch[DOCUMENTS], scores)
                batch[LOGPROBS] = _logprobs(batch[DOCUMENTS], scores)
                yield batch, weights

    def _sequences(self) -> Callable[[Batch], list[dict[str, Any]]]:
        """What is sent of a batch: its tokens, or its text."""
        if self._tokenizer is None:
            return _sequences
        if self._projector is None:
            self._projector = Projector(self._client, self._model, self._tokenizer)
        projector = self._projector

        def texts(batch: Batch) -> list[dict[str, Any]]:
            batch[QUESTIONS] = [projector.question(document) for document in _wanted(batch[DOCUMENTS])]
            return [question.sequence for question in batch[QUESTIONS] if question.start is not None]

        return texts


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

    The static weights of a method of the live student are `uniform`'s; its factor comes from the forward pass.
    Raises ConfigError for a method that needs a server.
    """

    wait_seconds = 0.0

    def __init__(self, method: str = "uniform", params: Mapping[str, Any] | None = None) -> None:
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


def _sequences(batch: Batch) -> list[dict[str, Any]]:
    """What is sent of a batch: the tokens of every document that trains something, and which of them do."""
    wanted = _wanted(batch[DOCUMENTS])
    return [{"token_ids": document.token_ids, "mask": document.trained.astype(np.uint8)} for document in wanted]


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
