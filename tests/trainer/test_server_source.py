"""Weights from a real server over a real socket, through the prefetch, across epochs and interruptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tokenpriority import Client, SequenceErrors
from tokenpriority_trainer import ColumnSource, PrioritySFTTrainer, ServerSource
from tokenpriority_trainer.errors import WeightError


def training_rows(text: str, count: int = 12) -> list[dict[str, Any]]:
    return [{"text": text[60 * i : 60 * i + 30 + 5 * i]} for i in range(count)]


def probabilities(model: Any, ids: list[int]) -> list[float]:
    """q(token) of each token in float64; 0 for the first, which nothing predicts."""
    row = torch.tensor([ids])
    q = torch.softmax(model.double()(row).logits[0, :-1], -1).gather(-1, row[0, 1:, None])[:, 0]
    return [0.0, *q.tolist()]


def updates(trainer: Any) -> dict[str, Any]:
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: p.detach() - before[name] for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize("packing", [False, True])
def test_the_servers_weights_train_as_weights_computed_by_hand(
    client: Client, make_model: Any, make_args: Any, tokenizer: Any, text: str, reference_seed: int, packing: bool
) -> None:
    reference = make_model(reference_seed)
    rows = []
    for row in training_rows(text):
        ids = tokenizer(row["text"] + tokenizer.eos_token)["input_ids"]
        rows.append({"input_ids": ids, "labels": ids, "priorities": probabilities(reference, ids)})
    shared = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 4, "learning_rate": 20.0}
    packed = {"packing": True, "max_length": 64} if packing else {}
    by_hand = PrioritySFTTrainer(
        make_model(),
        make_args(**shared),
        Dataset.from_list(rows),
        priorities=ColumnSource(),
        processing_class=tokenizer,
    )
    by_server = PrioritySFTTrainer(
        make_model(),
        make_args(**shared, **packed),
        Dataset.from_list(training_rows(text)),
        priorities=ServerSource(client, "prift_prob", depth=2),
        processing_class=tokenizer,
    )
    expected, found = updates(by_hand), updates(by_server)
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5)
    assert by_server.state.log_history[0]["wait_seconds"] > 0


class StopAfter(TrainerCallback):
    """Ends training after a step, as an interruption would, or breaks it."""

    def __init__(self, step: int, error: Exception | None = None) -> None:
        self._step, self._error = step, error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self._step:
            if self._error is not None:
                raise self._error
            control.should_training_stop = True


@pytest.fixture
def long_run(client: Client, make_model: Any, make_args: Any, tokenizer: Any, text: str) -> Callable[..., Any]:
    def make(folder: Any, *callbacks: TrainerCallback, **changes: Any) -> Any:
        options = {"max_steps": 7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        optimiser = {"optim": "adamw_torch", "learning_rate": 1e-3, "lr_scheduler_type": "linear"}
        saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(folder)}
        return PrioritySFTTrainer(
            make_model(attention_dropout=0.1),
            make_args(**{**options, **optimiser, **saving, **changes}),
            Dataset.from_list(training_rows(text)),
            priorities=ServerSource(client, "prift_mass", {"tau": 0.2}),
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )

    return make


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(long_run: Any, tmp_path: Any) -> None:
    """Three update steps to an epoch, so the interruption is in the middle of the second one."""
    whole = long_run(tmp_path / "whole")
    whole.train()
    first = long_run(tmp_path / "parts", StopAfter(4))
    first.train()
    assert first.state.global_step == 4
    second = long_run(tmp_path / "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-4"))
    assert second.state.global_step == 7
    for (name, expected), found in zip(whole.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(found, expected), name


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tokenpriority-prefetch"]


@pytest.mark.parametrize("error", [None, RuntimeError("a broken step")])
def test_no_prefetch_outlives_training(long_run: Any, tmp_path: Any, error: Exception | None) -> None:
    trainer = long_run(tmp_path, StopAfter(2, error), save_strategy="no")
    if error is None:
        trainer.train()
    else:
        with pytest.raises(RuntimeError, match="a broken step"):
            trainer.train()
    assert prefetching() == []


def test_a_document_the_server_refuses_stops_the_run(
    client: Client, make_model: Any, make_args: Any, tokenizer: Any
) -> None:
    long = [{"input_ids": [7] * 300, "labels": [7] * 300}]  # the reference takes 256
    trainer = PrioritySFTTrainer(
        make_model(max_position_embeddings=512),
        make_args(),
        Dataset.from_list(long),
        priorities=ServerSource(client),
        processing_class=tokenizer,
    )
    long_one = "row 0, tokens 0 to 300 of the batch, whose token ids begin 7, 7, 7, 7, 7, 7, 7, 7: .*256"
    with pytest.raises(WeightError, match=long_one) as failed:
        trainer.train()
    assert isinstance(failed.value.__cause__, SequenceErrors)
    assert prefetching() == []
