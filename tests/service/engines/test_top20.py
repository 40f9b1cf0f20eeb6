"""entropy_top20: right where it is asked for, and neither there nor paid for where it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tokenpriority_service.engines import Job, head, statistics
from tokenpriority_service.engines.fake import FakeEngine


@pytest.mark.parametrize("kind", ["llama_tied", "gemma2_cap"])
def test_torch_gives_the_entropy_of_the_likeliest_twenty(lab: Any, open_engine: Callable[..., Any], kind: str) -> None:
    """In one call with jobs that do not want it, with and without a score_from."""
    plain = lab.jobs(6, seed=1)
    jobs = [Job(job.token_ids, 1 + 3 * (n % 2), top20=n % 3 != 0) for n, job in enumerate(plain)]
    results = lab.score(open_engine(kind), jobs)
    for job, rows in zip(jobs, results, strict=True):
        lab.check(rows[:6], lab.truth(lab.exact(kind), job), job.score_from)
        assert len(rows) == (7 if job.top20 else 6)
        if job.top20:
            assert np.isnan(rows[6, : job.score_from]).all()
            expected = lab.top20(lab.exact(kind), job)[job.score_from :]
            np.testing.assert_allclose(rows[6, job.score_from :], expected, rtol=0, atol=1e-4)


def test_only_the_rows_that_want_it_pay_for_it(lab: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[bool, int] = {False: 0, True: 0}
    compute = statistics.token_statistics

    def watched(logits: Any, targets: Any, *, top20: bool = False) -> Any:
        asked[top20] += len(targets)
        return compute(logits, targets, top20=top20)

    monkeypatch.setattr(head, "token_statistics", watched)
    from tokenpriority_service.engines.scorer import Scorer

    model = lab.build("llama")
    scorer = Scorer(model, head.Head(model, 1 << 20))
    ids = np.arange(10, dtype=np.uint32)
    scorer.score([Job(ids), Job(ids, 4)])
    assert asked == {False: 15, True: 0}
    scorer.score([Job(ids, 8, top20=True), Job(ids)])
    assert asked == {False: 24, True: 2}


def test_the_fake_engine_gives_that_of_its_distribution(lab: Any) -> None:
    engine = FakeEngine(vocab_size=260)
    for prefix in ([0], [1, 2, 3], [7, 7], [90, 3]):
        jobs = [Job(np.array([*prefix, token], np.uint32), top20=True) for token in range(260)]
        last = np.array([rows[:, -1] for rows in lab.score(engine, jobs)], np.float64)
        q = np.sort(np.exp(last[:, 0]))[-20:]
        q /= q.sum()
        np.testing.assert_allclose(last[:, 6], -(q * np.log(q)).sum(), rtol=0, atol=1e-5)
        [without] = lab.score(engine, [Job(jobs[5].token_ids)])
        np.testing.assert_array_equal(without, lab.score(engine, [jobs[5]])[0][:6])
