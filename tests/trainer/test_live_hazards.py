"""Live methods where numbers end: certain models, empty micro-batches, half precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from live_truth import Rows, Update, assert_same, moved, near_and_far, truth
from tokenpriority.evidence import Evidence
from tokenpriority.methods import Inputs, get_method, prioritise
from tokenpriority_trainer import FrozenCopies, Weighting
from tokenpriority_trainer.live import TORCH

Step = Callable[..., Update]


@pytest.fixture
def step(make_trainer: Callable[..., Any]) -> Step:
    return lambda *args, **changes: moved(make_trainer(*args, **changes))


@pytest.fixture
def frozen(make_model: Any) -> Callable[[], FrozenCopies]:
    return lambda: near_and_far(make_model)


CERTAIN = ["dft", "talr", "cayley", "deft", "focal", "mile", "eaft", "ranktuner", "infosft", "iw_sft", "gem", "asft"]
CERTAIN += ["wga", "satimp", "npo", "simnpo", "tnpo", "wtnpo", "ce_u", "undial", "unlikelihood", "ga", "psft"]


@pytest.mark.parametrize("name", CERTAIN)
def test_a_model_that_is_certain_gives_finite_gradients(
    make_trainer: Any, make_model: Any, rows: Rows, frozen: Any, name: str
) -> None:
    """Probabilities of exactly 1 and log-probs of minus thousands, both on trained tokens."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(3e3)
        ids = torch.tensor([rows[7]["input_ids"]])
        rows[7]["input_ids"][9:] = [int(token) for token in model(ids).logits[0, 8:-1].argmax(-1)]
        rows[7]["labels"] = rows[7]["input_ids"]
        ids = torch.tensor([rows[7]["input_ids"]])
        logprob = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])
    assert logprob.max() == 0
    assert logprob.min() < -1000
    trainer = make_trainer(rows, Weighting.of(name), model=model, local=frozen())
    update = moved(trainer)
    assert all(torch.isfinite(value).all() for value in update.values())
    assert math.isfinite(trainer.state.log_history[0]["loss"])


@pytest.mark.parametrize("name", ["eaft", "talr", "gem", "npo", "profit"])
def test_a_micro_batch_that_trains_nothing_adds_nothing(step: Step, rows: Rows, frozen: Any, name: str) -> None:
    ignored = {"input_ids": [1, 2, 3], "labels": [-100] * 3}
    alone = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 9, "shuffle_dataset": False}
    rule, copies = Weighting.of(name, {"tau": 0.002} if name == "profit" else None), frozen()
    found = step([ignored, *rows], rule, local=copies, **alone)
    assert_same(found, step(rows, rule, local=copies, **{**alone, "gradient_accumulation_steps": 8}))


@pytest.mark.parametrize("name", ["dft", "eaft", "asft"])
def test_mixed_precision_is_near_full_precision(step: Step, rows: Rows, frozen: Any, name: str) -> None:
    rule, copies = Weighting.of(name), frozen()
    full, mixed = step(rows, rule, local=copies), step(rows, rule, local=copies, bf16=True)
    flat = [torch.cat([value.flatten() for value in each.values()]) for each in (full, mixed)]
    assert torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0) > 0.99


def test_the_models_own_logits_give_what_trls_fused_head_gives(
    make_trainer: Any, signed: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Weighting.of("uniform", student="focal", forget="wga")
    fused = make_trainer(signed, rule)
    update = moved(fused)
    monkeypatch.setattr("tokenpriority_trainer.student.FUSED", frozenset())
    monkeypatch.setattr("tokenpriority_trainer.student.CHUNK_BYTES", 4 * 400 * 7)  # 7 tokens at a time
    logits = make_trainer(signed, rule)
    assert_same(moved(logits), update)
    for key in ("loss", "entropy", "mean_token_accuracy", "nll_pos", "nll_neg", "negative_share", "grad_norm"):
        assert logits.state.log_history[0][key] == pytest.approx(fused.state.log_history[0][key], rel=1e-5)


def test_numpy_and_torch_agree_on_rows_of_unlike_length(make_model: Any, rows: Rows, frozen: Any) -> None:
    _, inputs = truth(make_model(), rows, "talr", {}, frozen())
    method = get_method("talr")
    evidence = inputs.student
    assert evidence is not None
    plain = Inputs(inputs.mask.numpy(), student=Evidence(evidence.logprob.numpy()))
    found = prioritise(method, method.parse(), inputs, xp=TORCH).numpy()
    np.testing.assert_allclose(found, prioritise(method, method.parse(), plain, xp=np), rtol=1e-12)
