"""What every engine refuses on its way in and out."""

from __future__ import annotations

import numpy as np
import pytest

from tokenpriority.errors import EngineFault, InvalidSequence
from tokenpriority_service.engines import EngineInfo, Job
from tokenpriority_service.engines.contract import check_job, empty_rows, filled_rows, wanted

INFO = EngineInfo("x", "x", "float32", max_model_len=8, vocab_size=10, fingerprint="", signals=())


def ids(*values: int) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    return np.array(values, np.uint32)


@pytest.mark.parametrize(
    ("job", "complaint"),
    [
        (Job(ids()), "token_ids: expected 1 to 8 tokens, got 0"),
        (Job(ids(*range(9))), "token_ids: expected 1 to 8 tokens, got 9"),
        (Job(ids(1, 2, 10)), r"token_ids\[2\]: expected an id below 10, got 10"),
        (Job(ids(1, 2), score_from=0), "score_from: expected at least 1, got 0"),
        (Job(ids(1, 2), top20=True), "signals: engine 'x' does not give entropy_top20"),
        (Job(ids(1, 2).reshape(1, 2)), "token_ids: expected a 1-D uint32 array, got 2-D uint32"),
        (Job(ids(1, 2).astype(np.float64)), "token_ids: expected a 1-D uint32 array, got 1-D float64"),
    ],
)
def test_a_job_the_model_cannot_take_is_refused(job: Job, complaint: str) -> None:
    with pytest.raises(InvalidSequence, match=complaint):
        check_job(job, INFO)


def test_a_good_job_passes() -> None:
    check_job(Job(ids(*range(8)), score_from=100), INFO)


def test_rows_are_filled_from_score_from() -> None:
    job = Job(ids(1, 2, 3, 4), score_from=2)
    assert wanted(job) == 2
    rows = filled_rows(job, np.arange(12, dtype=np.float32).reshape(6, 2))
    np.testing.assert_array_equal(np.isnan(rows), np.isnan(empty_rows(job)) & (np.arange(4) < 2))
    np.testing.assert_array_equal(rows[:, 2:], np.arange(12).reshape(6, 2))


def test_a_job_with_top20_has_a_seventh_row() -> None:
    job = Job(ids(1, 2, 3), score_from=2, top20=True)
    assert job.rows[6:] == ("entropy_top20",)
    assert empty_rows(job).shape == (7, 3)
    np.testing.assert_array_equal(filled_rows(job, np.ones((7, 1), np.float32))[:, 2], np.ones(7))
    with pytest.raises(EngineFault, match="entropy_top20 = nan at position 2"):
        filled_rows(job, np.array([[1.0]] * 6 + [[np.nan]], np.float32))
    with pytest.raises(EngineFault, match=r"expected evidence of shape \[7, 1\], got \[6, 1\]"):
        filled_rows(job, np.ones((6, 1), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_evidence_that_is_not_finite_names_its_place(value: float) -> None:
    evidence = np.zeros((6, 3), np.float32)
    evidence[1, 2] = evidence[4, 1] = value
    with pytest.raises(EngineFault, match=f"mass_above = {value} at position 3"):
        filled_rows(Job(ids(1, 2, 3, 4, 5), score_from=2), evidence)
