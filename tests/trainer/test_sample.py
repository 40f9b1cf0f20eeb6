"""The sample of a run's weights equals what numpy and a full sort say of all of them, and does not grow."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenpriority import Client
from tokenpriority_trainer import ServerSource
from tokenpriority_trainer.documents import Document
from tokenpriority_trainer.sample import CONTEXT, SHOWN, SIDE, Bar, Example, Histogram, PrioritySample

Batch = tuple[list[Document], torch.Tensor, list[Any] | None]

WEIGHTS = st.lists(
    st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0]),
    max_size=60,
)


def histogram(*parts: list[float]) -> Histogram:
    made = Histogram()
    for part in parts:
        made.add(np.array(part, np.float32))
    return made


def counted(bars: list[Bar], values: Any) -> list[int]:
    """Numpy's counts of positive values in these bars, which are all right of zero."""
    edges = [bar.low for bar in bars] + [bars[-1].high]
    return [int(count) for count in np.histogram(values.astype(np.float64), edges)[0]]


@given(WEIGHTS, WEIGHTS)
def test_the_histogram_is_numpys(first: list[float], second: list[float]) -> None:
    whole, merged = histogram(first, second), histogram(first)
    merged.merge(histogram(second))
    values = np.array(first + second, np.float32)
    assert (whole.zeros, whole.positive, whole.negative) == (
        int((values == 0).sum()),
        int((values > 0).sum()),
        int((values < 0).sum()),
    )
    bars = whole.bars()
    assert merged.bars() == bars
    right = [bar for bar in bars if bar.low >= 0]
    left = [Bar(-bar.high, -bar.low, bar.count) for bar in reversed(bars) if bar.high <= 0]
    assert len(left) + len(right) == len(bars)
    for side, found in ((right, values[values > 0]), (left, -values[values < 0])):
        assert len(side) <= SIDE
        assert sum(bar.count for bar in side) == len(found)
        if side:
            assert side[0].low == 0
            assert side[-1].count > 0
            assert [bar.count for bar in side] == counted(side, found)
    assert all(math.log2(bar.high - bar.low).is_integer() for bar in bars)


def test_the_bars_of_plain_weights_are_easy_to_read() -> None:
    bars = histogram([1.0] * 5 + [0.5, -1.0, 0.0]).bars()
    assert {bar.high - bar.low for bar in bars} == {1 / 16}
    assert [bar for bar in bars if bar.count] == [Bar(-1.0625, -1.0, 1), Bar(0.5, 0.5625, 1), Bar(1.0, 1.0625, 5)]


def test_a_histogram_of_zeros_has_no_bars() -> None:
    made = histogram([0.0, -0.0])
    assert (made.zeros, made.bars()) == (2, [])


@st.composite
def batches(draw: st.DrawFn) -> list[Batch]:
    """Batches of packed documents over a small vocabulary, with few weights, so that ties are common."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
        generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        made.append(batch(generator, lengths, scored=draw(st.booleans())))
    return made


def batch(generator: Any, lengths: list[int], *, scored: bool) -> Batch:
    """Two rows, each of documents of these lengths one after another, behind one column of padding."""
    width = 1 + sum(lengths)
    weights = generator.choice([-2.0, -1.0, -0.5, 0.0, 0.25, 1.0, 1.5], (2, width)).astype(np.float32)
    found = []
    for row in range(2):
        start = 1
        for length in lengths:
            trained = generator.random(length) < 0.7
            trained[0] = False
            ids = generator.integers(0, 60, length).astype(np.uint32)
            found.append(Document(row, start, start + length, ids, trained))
            start += length
    logprobs = [generator.normal(size=len(d.trained)).astype(np.float32) for d in found]
    for each in logprobs:
        each[-1] = np.nan  # as the projection leaves it where the reference says nothing of a token
    return found, torch.from_numpy(weights), logprobs if scored else None


def sampled(made: list[Batch], first_step: int = 1) -> PrioritySample:
    """Every batch as one optimiser step."""
    sample = PrioritySample()
    for step, each in enumerate(made, first_step):
        sample.offer(*each)
        sample.collect(step)
    return sample


def tokens(made: list[Batch]) -> list[Example]:
    """Every trained token of the batches, in order, one by one."""
    all_of_them: list[Example] = []
    seen = 0
    for step, (found, weights, logprobs) in enumerate(made, 1):
        for number, document in enumerate(found):
            for place in range(document.end - document.start):
                seen += 1
                if not document.trained[place]:
                    continue
                first = max(0, place - CONTEXT)
                logprob = None if logprobs is None else float(logprobs[number][place])
                all_of_them.append(
                    Example(
                        float(weights[document.row, document.start + place]),
                        None if logprob is None or math.isnan(logprob) else logprob,
                        step,
                        seen - 1,
                        tuple(document.token_ids.tolist()[first : place + CONTEXT + 1]),
                        place - first,
                    )
                )
    return all_of_them


def extremes(examples: list[Example], sign: int) -> list[Example]:
    """By a full sort: the greatest, the earlier of equals, each token of the vocabulary once."""
    kept: dict[int, Example] = {}
    for each in sorted(examples, key=lambda each: (-sign * each.priority, each.number)):
        if sign * each.priority > 0:
            kept.setdefault(each.token_ids[each.at], each)
    return list(kept.values())[:SHOWN]


@given(batches())
def test_the_extremes_are_those_of_a_full_sort(made: list[Batch]) -> None:
    sample, every = sampled(made), tokens(made)
    assert sample.tokens == len(every)
    assert sample.most_positive.sorted() == extremes(every, 1)
    assert sample.most_negative.sorted() == extremes(every, -1)
    assert sample.histogram.zeros == sum(each.priority == 0 for each in every)
    assert sample.first_step == (every[0].step if every else None)


@given(batches(), batches())
def test_merged_samples_hold_the_extremes_of_both(first: list[Batch], second: list[Batch]) -> None:
    one, two = sampled(first), sampled(second, first_step=5)
    both = PrioritySample()
    for each in (one, two):
        both.merge(pickle.loads(pickle.dumps(each)))
    assert both.tokens == one.tokens + two.tokens
    assert both.histogram.positive == one.histogram.positive + two.histogram.positive
    for found, parts in (
        (both.most_positive, (one.most_positive, two.most_positive)),
        (both.most_negative, (one.most_negative, two.most_negative)),
    ):
        best: dict[int, float] = {}
        for example in (each for part in parts for each in part.sorted()):
            token = example.token_ids[example.at]
            best[token] = max(best.get(token, 0.0), abs(example.priority))
        shown = [abs(each.priority) for each in found.sorted()]
        assert shown == sorted(best.values(), reverse=True)[:SHOWN]
    assert both.first_step == min((s.first_step for s in (one, two) if s.first_step is not None), default=None)


def test_the_sample_does_not_grow() -> None:
    generator = np.random.default_rng(0)
    sample, sizes = PrioritySample(), []
    for step in range(1, 81):
        sample.offer(*batch(generator, [120, 90], scored=True))
        sample.collect(step)
        sizes.append(len(pickle.dumps(sample)))
    assert sizes[-1] == pytest.approx(sizes[4], rel=0.02)


def test_the_logprobs_are_those_of_the_servers_model(
    server: str,
    make_trainer: Callable[..., Any],
    make_model: Callable[..., Any],
    reference_seed: int,
    rows: list[dict[str, Any]],
) -> None:
    with Client(server) as client:
        trainer = make_trainer(rows, source=ServerSource(client, "prift_prob"))
        trainer.train()
    shown, reference = trainer.sample.most_positive.sorted(), make_model(reference_seed)
    assert len(shown) == SHOWN
    for each in shown:
        # No row is longer than CONTEXT + 1, so the tokens before are the whole of what the reference read.
        ids = torch.tensor([each.token_ids[: each.at + 1]])
        expected = torch.log_softmax(reference(ids).logits[0, -2].double(), -1)[ids[0, -1]]
        assert each.logprob == pytest.approx(expected.item(), abs=1e-4)


def test_what_is_discarded_is_not_counted() -> None:
    sample = PrioritySample()
    sample.offer(*batch(np.random.default_rng(0), [20], scored=False))
    sample.discard()
    sample.collect(1)
    assert (sample.tokens, sample.first_step, sample.histogram.bars()) == (0, None, [])
