"""token_statistics against plain loops over the same float32 logits in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenpriority.evidence import SIGNALS
from tokenpriority_service.engines import statistics
from tokenpriority_service.engines.statistics import token_statistics

LOGPROB, ENTROPY, TOP1, RANK, ABOVE, TIED = range(6)


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


@pytest.mark.parametrize("vocab", [1000, statistics._CPU_BLOCK // 2, statistics._CPU_BLOCK + 7])
def test_blocks_do_not_show(vocab: int) -> None:
    """Several blocks, blocks of single rows and rows wider than a block give what one row alone gives."""
    count = 3 * statistics._CPU_BLOCK // vocab + 2
    logits = torch.randn(count, vocab, generator=torch.Generator().manual_seed(0)) * 5
    targets = torch.arange(count) % vocab
    whole = token_statistics(logits.clone(), targets)
    for row in {0, count // 2, count - 1}:
        alone = token_statistics(logits[row : row + 1].clone(), targets[row : row + 1])
        torch.testing.assert_close(whole[:, row : row + 1], alone, rtol=0, atol=0)
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
