"""Models whose numbers depend on how long a sequence is: what the store has of a beginning answers where it is true.

The truth is the model's own forward over the whole sequence, in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenpriority_service.configuration.settings import Settings, TorchModel
from tokenpriority_service.engines import Job
from tokenpriority_service.engines.engine import EngineInfo

LONGEST = 256
DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}}


def served(lab: Any, serve: Any, model: Any, folder: Path, lengths: list[int]) -> list[int]:
    """How many tokens of beginnings of one sequence, asked for in this order, came from the store. Their logprobs must
    be right.
    """
    model.save_pretrained(folder)
    exact, ids = model.double(), np.random.default_rng(0).integers(0, lab.vocab_size, LONGEST)
    cached = []
    with serve(settings=Settings(models={"reference": TorchModel(model=str(folder), threads=1)})) as server:
        for length in lengths:
            answer = server.post({"sequences": [{"token_ids": ids[:length].tolist()}]}).json()
            cached.append(answer["usage"]["cached_tokens"])
            truth = lab.truth(exact, Job(ids[:length].astype(np.uint32)))[0]
            np.testing.assert_allclose(answer["results"][0]["logprobs"][1:], truth[1:], rtol=0, atol=1e-4)
    return cached


@pytest.mark.parametrize(
    ("bound", "lengths", "cached"),
    [
        (100, [80, 200, 90, 256, 100, 101], [0, 0, 64, 192, 64, 64]),
        (100, [200, 80, 256, 90], [0, 0, 192, 64]),
        (24, [20, 80, 200], [0, 0, 64]),
        (LONGEST, [80, 200, 256], [0, 64, 192]),
    ],
)
def test_longrope_evidence_is_kept_apart_by_the_bound(
    lab: Any, serve: Any, tmp_path: Path, bound: int, lengths: list[int], cached: list[int]
) -> None:
    """Beyond the bound all tokens of a sequence have other frequencies, its first ones too; on one side of it
    sequences share what they have in common.
    """
    longrope = {"max_position_embeddings": LONGEST, "original_max_position_embeddings": bound}
    model = lab.build("phi3_longrope", **longrope)
    assert served(lab, serve, model, tmp_path, lengths) == cached


def test_dynamic_scaling_does_not_depend_on_lengths_that_are_scored(lab: Any, serve: Any, tmp_path: Path) -> None:
    """It begins beyond the model's own length, which is the longest taken."""
    model = lab.build("llama", max_position_embeddings=LONGEST, **DYNAMIC)
    assert served(lab, serve, model, tmp_path, [80, LONGEST, 200]) == [0, 64, 192]


def test_a_bound_says_what_evidence_is_known_by() -> None:
    info = EngineInfo("x", "x", "float32", 100, 10, "print", (), length_bounds=(20, 40))
    known = [info.content_fingerprint(length) for length in (1, 20, 21, 40, 41, 100)]
    assert known[0] == known[1] == "print"
    assert known[2] == known[3]
    assert known[4] == known[5]
    assert len(set(known)) == 3
