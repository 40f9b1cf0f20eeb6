"""The batches of an epoch with their static weights, read ahead of training.

Knows how a source's weights are placed on the tokens of a batch, and how the caller's labels are laid over them. Knows
nothing of where weights come from, of losses or of optimiser steps.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing

import torch
from torch import Tensor

from tokenpriority import spans
from tokenpriority_trainer.collator import DOCUMENTS, LOGPROBS, PRIORITIES, SEQUENCES, SPAN_PRIORITIES
from tokenpriority_trainer.documents import IGNORED, Document, place
from tokenpriority_trainer.live import TORCH
from tokenpriority_trainer.metrics import SignMetrics
from tokenpriority_trainer.rows import ROWS, layout
from tokenpriority_trainer.sample import PrioritySample
from tokenpriority_trainer.source import Batch, PrioritySource
from tokenpriority_trainer.weighting import Weighting


class WeightedBatches:
    """Weights the batches of one epoch after the other; tells `sample` and `metrics` of each."""

    def __init__(
        self, source: PrioritySource, weighting: Weighting, sample: PrioritySample, metrics: SignMetrics
    ) -> None:
        self._source, self._weighting = source, weighting
        self._sample, self._metrics = sample, metrics
        self._epoch: Iterator[Batch] | None = None
        self._stream: Generator[Batch, None, None] | None = None

    def of(self, epoch: Iterator[Batch]) -> Iterator[Batch]:
        """The batches of an epoch's iterator, weighted.

        It is wrapped once, so the source reads ahead of training; skipping batches on resume happens before, inside
        the iterator. The stream of another epoch is closed.
        """
        if self._stream is None or epoch is not self._epoch:
            self.close()
            self._epoch, self._stream = epoch, self._weighted(epoch)
        return self._stream

    def close(self) -> None:
        """End whatever the source runs; idempotent."""
        if self._stream is not None:
            self._stream.close()
        self._sample.discard()
        self._epoch = self._stream = None

    def _weighted(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        """Each batch with its static `priorities` and what live methods read, in place of our other keys."""
        with closing(self._source.stream(batches)) as stream:
            for batch, values in stream:
                found: list[Document] = batch.pop(DOCUMENTS)
                shape, device = tuple(batch["input_ids"].shape), batch["input_ids"].device
                weights = torch.from_numpy(place(found, values, shape)).to(device)
                extras: Batch = {PRIORITIES: self._labelled(weights, batch)}
                logprobs = batch.pop(LOGPROBS, None)
                if "reference" in self._weighting.roles and logprobs is not None:
                    placed = place(found, logprobs, shape, what="reference's log-prob")
                    extras[LOGPROBS] = torch.from_numpy(placed).to(device)
                self._sample.offer(found, extras[PRIORITIES], logprobs)
                if self._weighting.live:
                    extras[ROWS] = layout(found, shape).to(device)
                extras[SEQUENCES] = sum(bool(document.trained.any()) for document in found)
                self._metrics.see(sum(document.end - document.start for document in found))
                yield {**batch, **extras}

    def _labelled(self, weights: Tensor, batch: Batch) -> Tensor:
        """Static weights with the caller's labels laid over, or with the signs of a method that reads them itself."""
        labels = batch.get(SPAN_PRIORITIES)
        trained = batch["labels"] != IGNORED
        trained[:, 0] = False
        if self._weighting.method is not None and self._weighting.labels_inside:
            signed = self._weighting.method.signs(weights, labels)
            return torch.where(trained, signed, torch.zeros_like(signed))
        return weights if labels is None else spans.apply(weights, labels, trained, xp=TORCH)
