"""A signal that is computed only where a call names it, from the real service."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from tokenpriority import Client
from tokenpriority.evidence import OPTIONAL_SIGNALS
from tokenpriority_service.engines.engine import Job
from tokenpriority_service.engines.fake import FakeEngine

IDS = np.arange(300, dtype=np.uint32)


def test_entropy_top20_comes_where_it_is_named(service: str) -> None:
    [rows] = asyncio.run(FakeEngine().score([Job(IDS, top20=True)]))
    assert isinstance(rows, np.ndarray)
    with Client(service, retries=0) as client:
        assert set(OPTIONAL_SIGNALS) <= set(client.models()[0].signals)
        [without] = client.score([IDS], signals=["entropy"])
        [scores] = client.score([IDS], signals=["entropy_top20", "rank"])
        [many] = client.score_many([{"token_ids": IDS, "score_from": 100}], signals=["entropy_top20"])
    assert list(without.signals) == ["entropy"]
    assert list(scores.signals) == ["entropy_top20", "rank"]
    np.testing.assert_array_equal(scores.signals["entropy_top20"], rows[6])
    np.testing.assert_array_equal(many.signals["entropy_top20"][100:], rows[6, 100:])
    assert np.isnan(many.signals["entropy_top20"][:100]).all()
    assert (many.cached, scores.cached) == (True, False)
    assert scores.signals["entropy_top20"][1:].max() == pytest.approx(np.log(20), abs=0.05)
