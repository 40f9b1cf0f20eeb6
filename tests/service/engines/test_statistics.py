"""token_statistics against plain loops over the same float32 logits in float64, whole and split over processes."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import statistics
from tokenpriority_service.engines.statistics import Shard, token_statistics

LOGPROB, ENTROPY, TOP1, RANK, ABOVE, TIED, TOP20 = range(7)

BLOCK = statistics._CPU_BLOCK_OF_A_THREAD


@st.composite
def rows(draw: st.DrawFn) -> tuple[Any, Any]:
    """Logits [n, V] with many exact ties, of magnitudes up to 1e4, some -inf, and targets that are finite."""
    count, vocab = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.integers(1, 2 * vocab))
    magnitude = draw(st.sampled_from([1e-3, 1.0, 30.0, 1e4]))
    logits = (rng.normal(size=levels) * magnitude).astype(np.float32)[rng.integers(0, levels, (count, vocab))]
    targets = rng.integers(0, vocab, count)
    suppressed = rng.random((count, vocab)) < draw(st.sampled_from([0.0, 0.5]))
    suppressed[np.arange(count), targets] = False
    logits[suppressed] = -np.inf
    return logits, targets


@given(rows())
@settings(max_examples=150, deadline=None)
def test_equals_the_definitions(lab: Any, case: tuple[Any, Any]) -> None:
    logits, targets = case
    got = token_statistics(torch.from_numpy(logits.copy()), torch.from_numpy(targets)).numpy()
    wanted = np.array([lab.statistics(row, y) for row, y in zip(logits.tolist(), targets.tolist(), strict=True)]).T
    np.testing.assert_allclose(got[[LOGPROB, ENTROPY, TOP1]], wanted[[LOGPROB, ENTROPY, TOP1]], rtol=2e-7, atol=3e-6)
    np.testing.assert_array_equal(got[RANK], wanted[RANK])
    np.testing.assert_allclose(got[[ABOVE, TIED]], wanted[[ABOVE, TIED]], rtol=2e-6, atol=3e-7)


@given(rows())
@settings(max_examples=100, deadline=None)
def test_signals_agree_with_each_other(lab: Any, case: tuple[Any, Any]) -> None:
    logits, targets = case
    got = token_statistics(torch.from_numpy(logits), torch.from_numpy(targets)).numpy()
    assert (got[LOGPROB] <= got[TOP1]).all()
    assert (got[TOP1] <= 0).all()
    assert (got[ENTROPY] >= 0).all()
    first = got[RANK] == 1
    np.testing.assert_array_equal(got[LOGPROB][first], got[TOP1][first])
    assert (got[ABOVE][first] == 0).all()
    assert (got[[ABOVE, TIED]] >= 0).all()
    assert (got[ABOVE] + got[TIED] + np.exp(got[LOGPROB]) <= 1 + 2**-22).all()


def test_rows_stand_in_the_order_of_the_contract() -> None:
    logits = torch.tensor([[3.0, 1.0, 1.0, 0.0, -2.0]])
    named = dict(zip(SIGNALS, token_statistics(logits, torch.tensor([1])).squeeze(1).tolist(), strict=True))
    q = np.exp([3.0, 1.0, 1.0, 0.0, -2.0]) / np.exp([3.0, 1.0, 1.0, 0.0, -2.0]).sum()
    expected = {
        "logprob": np.log(q[1]),
        "entropy": -(q * np.log(q)).sum(),
        "top1_logprob": np.log(q[0]),
        "rank": 2,
        "mass_above": q[0],
        "mass_tied": q[2],
    }
    assert named == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """As many threads of torch as the parameter says."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2], indirect=True)
@pytest.mark.parametrize("vocab", [1000, BLOCK // 2, BLOCK + 7])
def test_blocks_do_not_show(vocab: int, threads: int) -> None:
    """Several blocks, blocks of single rows and rows wider than a block give what one row alone gives, bit by bit; to
    two units in the last place where threads share the sums of a row that is alone."""
    apart = 0.0 if threads == 1 else 2.5e-7
    count = 3 * BLOCK // vocab + 2
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(0)) * 5
    targets = torch.arange(count) % vocab
    whole = token_statistics(logits.clone(), targets)
    for row in {0, count // 2, count - 1}:
        alone = token_statistics(logits[row : row + 1].clone(), targets[row : row + 1])
        torch.testing.assert_close(whole[:, row : row + 1], alone, rtol=apart, atol=apart)
    reference = logits.double().log_softmax(1)
    torch.testing.assert_close(whole[LOGPROB].double(), reference[torch.arange(count), targets], rtol=0, atol=1e-5)
    torch.testing.assert_close(whole[ENTROPY].double(), -(reference.exp() * reference).sum(1), rtol=0, atol=1e-5)
    above = reference > reference[torch.arange(count), targets][:, None]
    torch.testing.assert_close(whole[ABOVE].double(), (reference.exp() * above).sum(1), rtol=0, atol=1e-6)


def test_no_rows_are_no_evidence() -> None:
    assert token_statistics(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)).shape == (6, 0)


@pytest.mark.parametrize(
    "row", [[np.nan, 1.0, 2.0], [np.inf, 1.0, 2.0], [np.inf, 1.0, np.inf], [-np.inf, -np.inf, -np.inf]]
)
def test_what_cannot_be_scored_is_never_finite(row: list[float]) -> None:
    got = token_statistics(torch.tensor([row, [0.0, 1.0, 2.0]]), torch.tensor([1, 1]))
    assert got[[LOGPROB, ENTROPY, TOP1], 0].isnan().all()
    assert got[:, 1].isfinite().all()


def test_a_suppressed_target_has_logprob_minus_infinity() -> None:
    got = token_statistics(torch.tensor([[0.0, -torch.inf, 1.0]]), torch.tensor([1]))
    assert got[LOGPROB].item() == -torch.inf
    assert got[ENTROPY].isfinite()
    assert got[RANK].item() == 3


def entropy_top20(logits: list[float]) -> float:
    """By its definition: the 20 likeliest or fewer, renormalised; a token of probability 0 adds nothing."""
    best = sorted(logits, reverse=True)[:20]
    weights = [math.exp(z - best[0]) for z in best]
    q = [weight / math.fsum(weights) for weight in weights]
    return -math.fsum(p * math.log(p) for p in q if p > 0)


@given(rows())
@settings(max_examples=150, deadline=None)
def test_entropy_top20_is_that_of_the_likeliest(case: tuple[Any, Any]) -> None:
    """Also where the vocabulary has fewer, or fewer that are not suppressed; and nothing else changes."""
    logits, targets = case
    got = token_statistics(torch.from_numpy(logits.copy()), torch.from_numpy(targets), top20=True)
    assert got.shape == (7, len(targets))
    wanted = [entropy_top20(row) for row in logits.tolist()]
    np.testing.assert_allclose(got[TOP20].numpy(), wanted, rtol=2e-7, atol=3e-6)
    assert torch.equal(got[:TOP20], token_statistics(torch.from_numpy(logits), torch.from_numpy(targets)))


def test_entropy_top20_is_at_most_that_of_twenty() -> None:
    flat = token_statistics(torch.zeros(1, 1000), torch.tensor([0]), top20=True)
    assert flat[TOP20].item() == pytest.approx(math.log(20), abs=1e-6)
    assert flat[ENTROPY].item() == pytest.approx(math.log(1000), abs=1e-5)
    few = token_statistics(torch.zeros(1, 7), torch.tensor([0]), top20=True)
    assert few[TOP20].item() == pytest.approx(math.log(7), abs=1e-6)


class Group:
    """Threads in place of processes: each holds some columns, all meet in `gather`."""

    def __init__(self, edges: list[int]) -> None:
        self.edges = edges
        self._barrier = threading.Barrier(len(edges) - 1, timeout=30)
        self._given: dict[int, torch.Tensor] = {}
        self.widest = 0

    def statistics(self, logits: torch.Tensor, targets: torch.Tensor, padding: int) -> list[torch.Tensor]:
        """What each returns; all hold as many columns, `padding` more than the widest needs, at -inf, as in vLLM."""
        width = max(b - a for a, b in itertools.pairwise(self.edges)) + padding

        def one(number: int) -> torch.Tensor:
            def gather(rows: torch.Tensor) -> torch.Tensor:
                self._given[number] = rows
                self.widest = max(self.widest, rows.shape[1])
                self._barrier.wait()
                together = torch.stack([self._given[n] for n in range(len(self.edges) - 1)])
                self._barrier.wait()
                return together

            columns = logits[:, self.edges[number] : self.edges[number + 1]]
            local = torch.nn.functional.pad(columns, (0, width - columns.shape[1]), value=-torch.inf)
            return token_statistics(local, targets, top20=True, shard=Shard(self.edges[number], gather))

        with ThreadPoolExecutor(len(self.edges) - 1) as pool:
            return list(pool.map(one, range(len(self.edges) - 1)))


@st.composite
def splits(draw: st.DrawFn) -> tuple[Any, Any, list[int], int]:
    """Rows as above (ties fall into several shards, targets into any), the edges of 1 to 5 shards, and padding."""
    logits, targets = draw(rows())
    vocab = logits.shape[1]
    inner = draw(st.sets(st.integers(1, vocab - 1), max_size=4)) if vocab > 1 else set()
    return logits, targets, [0, *sorted(inner), vocab], draw(st.integers(0, 3))


@given(splits())
@settings(max_examples=150, deadline=None)
def test_shards_equal_the_whole(lab: Any, case: tuple[Any, Any, list[int], int]) -> None:
    logits, targets, edges, padding = case
    group = Group(edges)
    each = group.statistics(torch.from_numpy(logits), torch.from_numpy(targets), padding)
    assert all(torch.equal(each[0], other) for other in each), "all processes return the same"
    assert group.widest <= 20, "logits do not leave a process"
    whole = token_statistics(torch.from_numpy(logits.copy()), torch.from_numpy(targets), top20=True)
    got, wanted = each[0].numpy(), whole.numpy()
    np.testing.assert_array_equal(got[RANK], wanted[RANK])
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=3e-6)
    exact = np.array([lab.statistics(row, y) for row, y in zip(logits.tolist(), targets.tolist(), strict=True)]).T
    np.testing.assert_allclose(got[[LOGPROB, ENTROPY, TOP1]], exact[[LOGPROB, ENTROPY, TOP1]], rtol=2e-7, atol=3e-6)
    np.testing.assert_allclose(got[TOP20], [entropy_top20(row) for row in logits.tolist()], rtol=2e-7, atol=3e-6)


@pytest.mark.parametrize("edges", [[0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize(
    "row", [[np.nan, 1.0, 2.0], [1.0, 2.0, np.inf], [np.inf, 1.0, np.inf], [-np.inf, -np.inf, -np.inf]]
)
def test_what_cannot_be_scored_is_finite_in_no_process(row: list[float], edges: list[int]) -> None:
    for got in Group(edges).statistics(torch.tensor([row, [0.0, 1.0, 2.0]]), torch.tensor([1, 1]), 0):
        assert got[[LOGPROB, ENTROPY, TOP1, TOP20], 0].isnan().all()
        assert got[:, 1].isfinite().all()


def test_blocks_do_not_show_in_shards() -> None:
    """Several blocks in each process, whose collectives must still meet."""
    vocab = BLOCK // 4
    logits = torch.randn(19, vocab, generator=torch.Generator().manual_seed(1)) * 5
    targets = torch.arange(19) * 977 % vocab
    whole = token_statistics(logits.clone(), targets, top20=True)
    for got in Group([0, 1000, vocab // 2, vocab]).statistics(logits, targets, 5):
        torch.testing.assert_close(got, whole, rtol=1e-5, atol=3e-6)
