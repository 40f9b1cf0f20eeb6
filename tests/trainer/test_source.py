"""Sources of weights, the server's among them: a real server over a real socket, and clients that lie."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from tokenpriority import Client, InvalidSequence, Scores, SequenceErrors
from tokenpriority_trainer import ColumnSource, LocalSource, PrioritySFTTrainer, ServerSource
from tokenpriority_trainer.collator import PriorityCollator
from tokenpriority_trainer.errors import ConfigError, WeightError

Spoil = Callable[[list[Scores]], list[Scores]]

ROWS = [
    {"input_ids": [5, 6, 7, 8], "labels": [5, -100, 7, 8]},
    {"input_ids": [9], "labels": [9]},
    {"input_ids": [3, 4], "labels": [-100, -100]},
    {"input_ids": [1, 2, 3], "labels": [-100, 2, 3]},
]


def batches(**options: Any) -> list[dict[str, Any]]:
    return [PriorityCollator(pad_token_id=0, **options)(ROWS)]


class Prefetch(list[Any]):
    """What a client's prefetch gives, made beforehand."""

    wait_seconds = 1.5

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LyingClient:
    """Answers every document with its token ids as weights, after `spoil` has had its way with the answers."""

    def __init__(self, spoil: Spoil) -> None:
        self._spoil = spoil
        self.sent: list[Any] = []

    def prefetch(self, loader: Any, *, sequences: Any, **_: Any) -> Prefetch:
        batch = next(iter(loader))
        self.sent = sequences(batch)
        return Prefetch([(batch, self._spoil([answer(s["token_ids"]) for s in self.sent]))])


def answer(ids: Any, weights: Any = None) -> Scores:
    floats = np.asarray(ids if weights is None else weights, np.float32)
    return Scores(id=0, token_ids=np.asarray(ids, np.uint32), logprobs=floats, priorities=floats)


def stream(
    spoil: Callable[[list[Scores]], list[Scores]], **options: Any
) -> tuple[LyingClient, ServerSource, list[Any]]:
    client: Any = LyingClient(spoil)
    source = ServerSource(client, "prift_prob")
    return client, source, list(source.stream(batches(**options)))


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"padding_free": True, "pad_to_multiple_of": 8}])
def test_only_documents_that_train_something_are_sent(options: dict[str, Any]) -> None:
    client, source, ((batch, values),) = stream(lambda scores: scores, **options)
    assert [s["token_ids"].tolist() for s in client.sent] == [[5, 6, 7, 8], [1, 2, 3]]
    assert [s["mask"].tolist() for s in client.sent] == [[0, 0, 1, 1], [0, 1, 1]]
    assert [v.tolist() for v in values[:4]] == [[5, 6, 7, 8], [0], [0, 0], [1, 2, 3]]
    assert len(values) == len(batch["documents"])
    assert source.wait_seconds == 1.5


def test_waiting_adds_up_over_epochs() -> None:
    client: Any = LyingClient(lambda scores: scores)
    source = ServerSource(client)
    for _ in range(3):
        list(source.stream(batches()))
    assert source.wait_seconds == 4.5


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda scores: scores[:1], "2 documents were sent but scores of 1 came back"),
        (lambda scores: [*scores, scores[0]], "2 documents were sent but scores of 3 came back"),
        (lambda scores: scores[::-1], "row 0, tokens 0 to 4 .*: the server scored other tokens than were sent"),
        (lambda scores: [scores[0], answer([1, 2])], "row 3, tokens 0 to 3 .*: the server scored other tokens"),
    ],
)
def test_weights_that_are_not_the_documents_own_stop_the_run(spoil: Any, what: str) -> None:
    with pytest.raises(WeightError, match=what):
        stream(spoil)


@pytest.mark.parametrize(
    ("weights", "what"),
    [
        ([0, np.nan, 1], "tokens 0 to 3 .*: the weight of its token 1 is nan"),
        ([0, 1], r"tokens 0 to 3 .*: 3 tokens but weights of shape \(2,\)"),
    ],
)
def test_weights_that_are_short_or_no_numbers_stop_the_training(
    make_model: Any, make_args: Any, tokenizer: Any, weights: list[float], what: str
) -> None:
    def spoil(scores: list[Scores]) -> list[Scores]:
        return [answer(s.token_ids, weights if s.token_ids.tolist() == [1, 2, 3] else None) for s in scores]

    client: Any = LyingClient(spoil)
    trainer = PrioritySFTTrainer(
        make_model(), make_args(), Dataset.from_list(ROWS), priorities=ServerSource(client), processing_class=tokenizer
    )
    with pytest.raises(WeightError, match=what):
        trainer.train()


def test_a_method_without_evidence_is_applied_locally() -> None:
    ((_, ones),) = LocalSource().stream(batches())
    assert [v.tolist() for v in ones] == [[0, 0, 1, 1], [0], [0, 0], [0, 1, 1]]
    ((_, outside),) = LocalSource("spans", {"outside": 0.5}).stream(batches())
    assert [v.tolist() for v in outside] == [[0, 0, 0.5, 0.5], [0], [0, 0], [0, 0.5, 0.5]]


@pytest.mark.parametrize(("method", "reads"), [("prift_mass", "reference"), ("dft", "student")])
def test_a_method_that_reads_a_model_needs_more_than_a_local_source(method: str, reads: str) -> None:
    with pytest.raises(ConfigError, match=f"method '{method}' reads {reads}"):
        LocalSource(method)


def test_a_batch_without_the_column_is_refused() -> None:
    with pytest.raises(WeightError, match="has no 'priorities' column"):
        next(ColumnSource().stream(batches()))


# --- the real server ---


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server, timeout=60) as made:
        yield made


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
    with pytest.raises(SequenceErrors, match="1 of 1 sequences failed") as failed:
        trainer.train()
    assert isinstance(failed.value.failures[0], InvalidSequence)
    assert prefetching() == []
