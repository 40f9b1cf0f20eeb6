"""What a training reports, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from trl import SFTTrainer

from tokenpriority.composition import Schedule
from tokenpriority.evidence import Evidence
from tokenpriority_trainer import Weighting
from tokenpriority_trainer.errors import Diverged, NothingToLearn, WeightError
from tokenpriority_trainer.metrics import SignMetrics
from tokenpriority_trainer.student import Pass

Rows = list[dict[str, Any]]
Make = Callable[..., Any]


def test_the_schedule_runs_over_the_steps_of_the_run(make_trainer: Make, signed: Rows) -> None:
    trainer = make_trainer(signed, Weighting(schedule=Schedule(end=1.0)), max_steps=4, learning_rate=0.0)
    trainer.train()
    shares = [entry["negative_share"] for entry in trainer.state.log_history[:4]]
    weights = [
        w for r in signed for w, label in zip(r["priorities"][1:], r["labels"][1:], strict=True) if label != -100
    ]
    negative, positive = -sum(w for w in weights if w < 0), sum(w for w in weights if w > 0)
    expected = [negative * k / 4 / (positive + negative * k / 4) for k in range(4)]
    assert shares == pytest.approx(expected, rel=1e-5)


def test_metrics_are_split_by_sign(make_trainer: Make, make_model: Any, signed: Rows) -> None:
    trainer = make_trainer(signed, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train()
    sums = {"pos": 0.0, "neg": 0.0}
    counts = {"pos": 0, "neg": 0, "zero": 0}
    model = make_model()
    for row in signed:
        ids = torch.tensor([row["input_ids"]])
        logprob = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
        for lp, weight, label in zip(logprob, row["priorities"][1:], row["labels"][1:], strict=True):
            if label != -100:
                sign = "pos" if weight > 0 else "neg" if weight < 0 else "zero"
                counts[sign] += 1
                sums[sign] = sums.get(sign, 0.0) - lp
    found = trainer.state.log_history[0]
    assert found["nll_pos"] == pytest.approx(sums["pos"] / counts["pos"], rel=1e-5)
    assert found["nll_neg"] == pytest.approx(sums["neg"] / counts["neg"], rel=1e-5)
    assert found["kept_share"] == pytest.approx(1 - counts["zero"] / sum(counts.values()), rel=1e-6)
    assert found["num_tokens"] == sum(len(row["input_ids"]) for row in signed)
    assert found["tokens_per_second"] > 0


def test_what_a_kernel_does_not_give_is_left_out() -> None:
    metrics, weights, logprob = SignMetrics(), torch.tensor([[1.0, -1.0, 0.0]]), torch.tensor([[-2.0, -3.0, -4.0]])
    metrics.add(Pass(logprob, weights < 2, None, Evidence(logprob=logprob)), weights, weights)
    report = metrics.drain(Accelerator(cpu=True), 0.0)
    assert (report["nll_pos"], report["nll_neg"], report["negative_share"]) == (2.0, 3.0, 0.5)
    assert report.keys().isdisjoint({"entropy", "mean_token_accuracy"})


def test_a_mean_over_no_token_is_left_out(make_trainer: Make, weighted: Any) -> None:
    trainer = make_trainer(weighted(1.0))
    trainer.train()
    assert "nll_neg" not in trainer.state.log_history[0]
    assert trainer.state.log_history[0]["negative_share"] == 0


def test_evaluation_is_plain_nll_whatever_the_weights(
    make_trainer: Make, make_model: Any, make_args: Any, tokenizer: Any, rows: Rows, signed: Rows
) -> None:
    ours = make_trainer(signed, eval_dataset=Dataset.from_list(signed), per_device_eval_batch_size=4)
    theirs = SFTTrainer(
        make_model(),
        make_args(per_device_eval_batch_size=4),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    assert ours.evaluate()["eval_loss"] == pytest.approx(theirs.evaluate()["eval_loss"], rel=1e-6)


def test_a_step_without_any_weight_stops_the_run(make_trainer: Make, rows: Rows, weighted: Any) -> None:
    trainer = make_trainer(weighted(0.0))
    tokens = sum(label != -100 for row in rows for label in row["labels"][1:])
    with pytest.raises(NothingToLearn, match=f"step 1: all {tokens} trained tokens .* weight 0"):
        trainer.train()


@pytest.mark.parametrize("bad", [math.nan, None])
def test_a_missing_weight_stops_the_run(make_trainer: Make, weighted: Any, bad: float | None) -> None:
    rows = weighted(1.0)
    rows[2]["priorities"][4] = bad
    trainer = make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(WeightError, match=r"tokens 0 to 7 of the batch: the weight of its token 4 is nan"):
        trainer.train()


def test_a_short_column_stops_the_run(make_trainer: Make, weighted: Any) -> None:
    rows = weighted(1.0)
    rows[2]["priorities"].pop()
    trainer = make_trainer(rows, dataset_kwargs={"skip_prepare_dataset": True})
    with pytest.raises(WeightError, match="has 7 tokens but its 'priorities' has 6 values"):
        trainer.train()


def test_divergence_stops_the_run(make_trainer: Make, weighted: Any) -> None:
    trainer = make_trainer(weighted(1.0), learning_rate=1e30, max_steps=3)
    with pytest.raises(Diverged, match="has diverged"):
        trainer.train()


def test_adapters_of_virtual_tokens_are_refused(make_trainer: Make, weighted: Any) -> None:
    from peft import PromptTuningConfig

    config = PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    trainer = make_trainer(weighted(1.0), peft_config=config)
    with pytest.raises(WeightError, match="adapters that add virtual tokens are not supported"):
        trainer.train()


def test_a_schedule_that_begins_at_zero_is_no_error(make_trainer: Make, weighted: Any) -> None:
    trainer = make_trainer(weighted(-1.0), Weighting(schedule=Schedule(end=1.0)), max_steps=1)
    trainer.train()
    assert trainer.state.log_history[0]["grad_norm"] == 0
