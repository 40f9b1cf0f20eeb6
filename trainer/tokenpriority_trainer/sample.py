"""What the weights of a run were: a histogram of all of them, and the most extreme tokens where they stood.

Knows weights, documents and token ids, and keeps to constant memory however long the run is. What it is given are the
static weights: with the caller's spans laid over, before live methods, schedule and clip. Knows nothing of text, pages
or processes, but samples of several processes can be merged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tokenpriority_trainer.documents import Document, Floats

SHOWN = 20
"""How many of the most positive and of the most negative tokens are kept."""
CONTEXT = 16
"""Most tokens kept on either side of such a token."""
SIDE = 32
"""Most bars of a histogram on either side of zero."""

_DROPPED = 18
# Sizes are told apart by the upper bits of a float32: its exponent and five bits of its fraction.
_SIZES = 1 << (31 - _DROPPED)
_MINUS_ZERO = np.uint32(1 << 31)
_NARROWEST = 2.0**-131  # distance of the least edges, where float32 has no exponents left

Ints = np.ndarray[Any, np.dtype[np.int64]]
Ids = np.ndarray[Any, np.dtype[np.uint32]]


@dataclass(frozen=True, slots=True)
class Bar:
    """How many weights are from `low` to `high`; the end nearer to zero is included, the other is not."""

    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Example:
    """One token where it stood."""

    priority: float
    logprob: float | None
    """The reference's, where the source gives one."""
    step: int
    """The optimiser step it was trained in, from 1."""
    number: int
    """How many tokens, trained or not, this process had seen before it."""
    token_ids: tuple[int, ...]
    """The token and up to CONTEXT others of its document on either side."""
    at: int
    """Its index among them."""

    @property
    def rank(self) -> tuple[float, int]:
        """Greater is more extreme; of equals the earlier."""
        return abs(self.priority), -self.number


class Histogram:
    """Counts of finite weights by sign and size, zeros apart; 128 KiB whatever it counts."""

    def __init__(self) -> None:
        self.zeros = 0
        """Weights that are exactly 0."""
        self._counts: Ints = np.zeros((2, _SIZES), np.int64)

    def add(self, weights: Floats) -> None:
        """Count weights (n,), float32."""
        bits = weights.view(np.uint32)  # the sign is the uppermost
        counts = np.bincount(bits >> _DROPPED, minlength=2 * _SIZES).reshape(2, _SIZES)
        zeros = np.array([np.count_nonzero(bits == 0), np.count_nonzero(bits == _MINUS_ZERO)])
        counts[:, 0] -= zeros  # they share the least size with the least weights
        self._counts += counts
        self.zeros += int(zeros.sum())

    def merge(self, other: Histogram) -> None:
        """Add the counts of another."""
        self.zeros += other.zeros
        self._counts += other._counts

    @property
    def positive(self) -> int:
        """Weights above 0."""
        return int(self._counts[0].sum())

    @property
    def negative(self) -> int:
        """Weights below 0."""
        return int(self._counts[1].sum())

    def bars(self) -> list[Bar]:
        """Bars of one width, a power of two, from the least weight to the greatest; zeros are in none of them.

        Counts are exact: every edge m * 2^k with m up to 2 * SIDE is an edge of the sizes told apart.
        """
        filled = np.flatnonzero(self._counts.any(axis=0))
        if not len(filled):
            return []
        _, exponent = math.frexp(_edge(int(filled[-1])))
        width = max(2.0**exponent / SIDE, _NARROWEST)
        above, below = (_side(counts, width) for counts in self._counts)
        return [*(Bar(0.0 - bar.high, 0.0 - bar.low, bar.count) for bar in reversed(below)), *above]


class Extremes:
    """The SHOWN tokens of greatest size, each token of the vocabulary at most once, the earlier of equals."""

    def __init__(self) -> None:
        self._kept: dict[int, Example] = {}

    def add(self, sizes: Floats, token_ids: Ids, example: Callable[[int], Example]) -> None:
        """Look at tokens, sizes and ids (n,), in order; `example` gives the token of an index. Size 0 is not kept."""
        kept = self._kept.values()
        floor = min(abs(each.priority) for each in kept) if len(kept) == SHOWN else 0.0
        found = np.flatnonzero(sizes > floor)
        if not len(found):
            return
        order = found[np.argsort(-sizes[found], kind="stable")]
        _, first = np.unique(token_ids[order], return_index=True)
        for index in order[np.sort(first)[:SHOWN]].tolist():
            self.offer(example(index))

    def offer(self, new: Example) -> None:
        """Keep a token if it is among the greatest so far."""
        token = new.token_ids[new.at]
        old = self._kept.get(token)
        if old is not None and old.rank >= new.rank:
            return
        self._kept[token] = new
        if len(self._kept) > SHOWN:
            del self._kept[min(self._kept, key=lambda each: self._kept[each].rank)]

    def merge(self, other: Extremes) -> None:
        """Offer what another has kept."""
        for example in other._kept.values():
            self.offer(example)

    def sorted(self) -> list[Example]:
        """The tokens kept, the most extreme first."""
        return sorted(self._kept.values(), key=lambda each: each.rank, reverse=True)


class PrioritySample:
    """What is kept of the weights of a process's batches."""

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.most_positive, self.most_negative = Extremes(), Extremes()
        self.tokens = 0
        """Trained tokens seen."""
        self.first_step: int | None = None
        """The optimiser step of the first of them; after a resume not 1."""
        self._seen = 0
        self._waiting: list[tuple[Sequence[Document], Tensor, Sequence[Floats] | None]] = []

    def offer(self, found: Sequence[Document], weights: Tensor, logprobs: Sequence[Floats] | None) -> None:
        """Take a batch's documents, weights (R, C) on any device, and log-probs (T,) by document if there are any.

        They are only looked at in `collect`, when the step has waited for the device anyway.
        """
        self._waiting.append((found, weights, logprobs))

    def discard(self) -> None:
        """Forget batches that were offered and will not be trained on."""
        self._waiting.clear()

    def collect(self, step: int) -> None:
        """Count what was offered as trained in this optimiser step, from 1."""
        for found, weights, logprobs in self._waiting:
            self._add(found, weights.float().cpu().numpy(), logprobs, step)
        self._waiting.clear()

    def merge(self, other: PrioritySample) -> None:
        """Add what another process has seen."""
        self.histogram.merge(other.histogram)
        self.most_positive.merge(other.most_positive)
        self.most_negative.merge(other.most_negative)
        self.tokens += other.tokens
        steps = [step for step in (self.first_step, other.first_step) if step is not None]
        self.first_step = min(steps, default=None)

    def _add(self, found: Sequence[Document], weights: Floats, logprobs: Sequence[Floats] | None, step: int) -> None:
        if not found:
            return
        trained = np.concatenate([d.trained for d in found])
        token_ids = np.concatenate([d.token_ids for d in found])
        values = np.concatenate([weights[d.row, d.start : d.end] for d in found])
        values[~trained] = 0
        ends = np.cumsum([d.end - d.start for d in found])
        seen = self._seen

        def example(index: int) -> Example:
            number = int(np.searchsorted(ends, index, side="right"))
            document = found[number]
            at = index - int(ends[number]) + document.end - document.start
            first = max(0, at - CONTEXT)
            ids = document.token_ids[first : at + CONTEXT + 1].tolist()
            logprob = math.nan if logprobs is None else float(logprobs[number][at])
            said = logprob if math.isfinite(logprob) else None
            return Example(float(values[index]), said, step, seen + index, tuple(ids), at - first)

        self.histogram.add(values[trained])
        self.most_positive.add(values, token_ids, example)
        self.most_negative.add(-values, token_ids, example)
        self._seen += len(values)
        self.tokens += int(np.count_nonzero(trained))
        if self.first_step is None and self.tokens:
            self.first_step = step


def _edge(size: int) -> float:
    """The least weight of a size."""
    return float(np.uint32(max(size, 1) << _DROPPED).view(np.float32))


def _side(counts: Ints, width: float) -> list[Bar]:
    """Bars of one sign, from zero to the greatest that holds something."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return []
    last = int(_edge(int(filled[-1])) // width) + 1 if filled[-1] else 1
    edges = np.arange(last + 1) * width
    with np.errstate(over="ignore"):  # the edge above float32's greatest value is its infinity
        sizes = edges.astype(np.float32).view(np.uint32) >> _DROPPED
    sums = np.concatenate([[0], np.cumsum(counts)])[sizes]
    return [
        Bar(low, high, count)
        for low, high, count in zip(edges[:-1].tolist(), edges[1:].tolist(), np.diff(sums).tolist(), strict=True)
    ]
