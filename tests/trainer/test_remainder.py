"""What an epoch has left after its whole batches, where none of it has a weight; and the floats of a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from run_config import ADAM
from tokenpriority_trainer import LocalSource, Weighting
from tokenpriority_trainer.errors import NothingToLearn

Make = Callable[..., Any]
Rows = list[dict[str, Any]]

TWO_EPOCHS: dict[str, Any] = {**ADAM, "max_steps": -1, "num_train_epochs": 2}


def with_weight(length: int, count: int, weight: float) -> Rows:
    ids = [[1 + (7 * row + 3 * place) % 250 for place in range(length)] for row in range(count)]
    return [{"input_ids": row, "labels": row, "priorities": [weight] * length} for row in ids]


def state(trainer: Any) -> list[torch.Tensor]:
    """All that a step may change."""
    optimiser, model = trainer.optimizer.state_dict()["state"], trainer.model.state_dict()
    moments = [torch.as_tensor(value) for each in optimiser.values() for value in each.values()]
    return [*model.values(), *moments, torch.tensor(trainer.lr_scheduler.get_last_lr())]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "tokenpriority_trainer.guard"]


@pytest.mark.parametrize(
    ("left", "changes"),
    [
        (1, {"per_device_train_batch_size": 4}),
        (1, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (2, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
        (3, {"per_device_train_batch_size": 4, "packing": True, "max_length": 10}),  # flattened to one row
    ],
)
def test_a_remainder_without_any_weight_is_as_if_it_were_not_there(
    make_trainer: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path, left: int, changes: dict[str, Any]
) -> None:
    good, rest = with_weight(10, 8, 1.0), with_weight(10, left, 0.0)
    saving = {"save_strategy": "steps", "save_steps": 2}
    trainer = make_trainer([*good, *rest], **TWO_EPOCHS, **changes, **saving)
    trainer.train()
    assert trainer.state.global_step == 6
    line = f"all {9 * left} trained tokens of the global batch have weight 0, which is what the epoch had left"
    assert said(caplog) == [f"step {step}: {line}; the step is left out" for step in (3, 6)]
    without = make_trainer(good, **TWO_EPOCHS, **changes)
    without.train()
    assert without.state.global_step == 4
    assert all(map(torch.equal, state(trainer), state(without)))
    assert all(torch.tensor(line["loss"]).isfinite() for line in trainer.state.log_history[:6])

    resumed = make_trainer([*good, *rest], **TWO_EPOCHS, **changes)
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert all(map(torch.equal, state(resumed), state(without)))


@pytest.mark.parametrize("packed", [{}, {"packing": True, "max_length": 10}])
def test_a_whole_batch_without_any_weight_stops_the_run(make_trainer: Make, packed: dict[str, Any]) -> None:
    rows = [*with_weight(10, 4, 1.0), *with_weight(10, 4, 0.0)]
    with pytest.raises(NothingToLearn, match="step 2: all 36 trained tokens of the global batch have weight 0; use a"):
        make_trainer(rows, **TWO_EPOCHS, per_device_train_batch_size=4, **packed).train()


def test_an_epoch_that_is_nothing_else_stops_the_run(make_trainer: Make) -> None:
    with pytest.raises(NothingToLearn, match="step 1: all 27 trained tokens"):
        make_trainer(with_weight(10, 3, 0.0), **TWO_EPOCHS, per_device_train_batch_size=4).train()


class Reference:
    """Weight 1, and log-probs as a server gives them."""

    wait_seconds = 0.0

    def stream(self, batches: Any) -> Any:
        for batch, values in LocalSource().stream(batches):
            batch["reference_logprobs"] = [each / 3 - 1 for each in values]
            yield batch, values


def test_weights_stay_as_they_are_where_deepspeed_has_floats_made_small(
    make_trainer: Make, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed is not installed: what the Trainer asks of it, whether it is on and its dtype, is said here."""
    labelled = [{**row, "spans": [{"start": 1, "end": 3, "priority": 0.1}]} for row in rows]
    trainer = make_trainer(labelled, Weighting.of("iw_sft", {"unit": "token"}), source=Reference())
    plugin = SimpleNamespace(hf_ds_config=SimpleNamespace(dtype=lambda: torch.bfloat16))
    loader = trainer.get_train_dataloader()
    (batch,), _ = trainer.get_batch_samples(iter(loader), 1, trainer.args.device)
    own = {"priorities", "span_priorities", "reference_logprobs"}
    floats = {key: value for key, value in batch.items() if torch.is_tensor(value) and value.is_floating_point()}
    assert floats.keys() == own
    monkeypatch.setattr(trainer, "is_deepspeed_enabled", True)
    monkeypatch.setattr(trainer.accelerator, "state", SimpleNamespace(deepspeed_plugin=plugin))
    found = trainer._prepare_inputs({**batch, "inputs_embeds": torch.full((2, 2), 0.1)})
    assert found["inputs_embeds"].dtype == torch.bfloat16
    for key, value in floats.items():
        assert found[key].dtype == torch.float32, key
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, equal_nan=True)
