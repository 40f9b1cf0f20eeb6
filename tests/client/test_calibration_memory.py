"""What calibration holds at once: it does not grow with the dataset."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tokenpriority import Client, Scores
from tokenpriority.calibration import Calibrator


def random_scores(generator: np.random.Generator) -> Scores:
    """1,000 tokens that count, as the method `uniform` returns them."""
    values = -generator.random(1001).astype(np.float32) * 20
    values[0] = np.nan
    priorities = np.ones(1001, np.float32)
    priorities[0] = 0
    return Scores(id=0, token_ids=np.arange(1001, dtype=np.uint32), logprobs=values, priorities=priorities)


def peak(work: Callable[[], Any]) -> int:
    """Most bytes of Python and numpy that were alive at once during `work`, beyond those before it."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_a_million_tokens_take_no_more_memory_than_a_tenth_of_them() -> None:
    generator = np.random.default_rng(11)
    batches = [[random_scores(generator) for _ in range(2)] for _ in range(50)]

    fingerprints = {"reference": "a", "base": "b"}

    def calibrate(tokens: int) -> None:
        with Calibrator("token_cleaning") as calibrator:
            for number in range(tokens // 1000):
                calibrator.add(batches[number % len(batches)])
            assert calibrator.calibration(fingerprints).tokens == tokens

    calibrate(1000)  # what is loaded once
    few, many = peak(lambda: calibrate(100_000)), peak(lambda: calibrate(1_000_000))
    assert many <= few + 65_536
    assert many < 4 * 2**20


def test_the_dataset_is_read_once_and_no_further_ahead_than_is_in_flight(service: str) -> None:
    """From the iterable to the threshold: what is read and not yet ranked is bounded, whatever the dataset's size."""
    read = furthest = ranked = 0
    add = Calibrator.add

    def dataset() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal read
        for number in range(600):
            read += 1
            yield (np.arange(100) + number) % 500

    def counted(self: Calibrator, scores: Any) -> None:
        nonlocal furthest, ranked
        furthest = max(furthest, read - ranked)
        ranked += 1
        add(self, scores)

    with pytest.MonkeyPatch.context() as patch, Client(service, retries=0, max_inflight_tokens=4_000) as client:
        patch.setattr(Calibrator, "add", counted)
        calibration = client.calibrate(dataset(), method="token_cleaning")
    assert (read, ranked, calibration.sequences, calibration.tokens) == (600, 600, 600, 99 * 600)
    # Of each model's stream 4,000 tokens begun, one request of 1,000 about to be, and one handed out.
    assert furthest <= (4_000 + 2 * 1_000) // 100 + 1
