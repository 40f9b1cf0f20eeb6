"""Sources of weights: local ones, and what becomes of a server that lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tokenpriority import Client, Scores
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


class LyingClient(Client):
    """Answers every document with its token ids as weights, after `spoil` has had its way with the answers."""

    def __init__(self, spoil: Spoil, url: str = "http://127.0.0.1:9") -> None:
        super().__init__(url)
        self._spoil = spoil
        self.sent: list[Any] = []

    def prefetch(self, loader: Any, *_: Any, **asked: Any) -> Any:
        batch = next(iter(loader))
        self.sent = asked["sequences"](batch)
        return Prefetch([(batch, self._spoil([answer(s["token_ids"]) for s in self.sent]))])


def answer(ids: Any, weights: Any = None) -> Scores:
    floats = np.asarray(ids if weights is None else weights, np.float32)
    return Scores(id=0, token_ids=np.asarray(ids, np.uint32), logprobs=floats, priorities=floats)


def stream(
    spoil: Callable[[list[Scores]], list[Scores]], **options: Any
) -> tuple[LyingClient, ServerSource, list[Any]]:
    client = LyingClient(spoil)
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
    source = ServerSource(LyingClient(lambda scores: scores))
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
    server: str, make_model: Any, make_args: Any, tokenizer: Any, weights: list[float], what: str
) -> None:
    def spoil(scores: list[Scores]) -> list[Scores]:
        return [answer(s.token_ids, weights if s.token_ids.tolist() == [1, 2, 3] else None) for s in scores]

    with LyingClient(spoil, server) as client:
        source = ServerSource(client)
        trainer = PrioritySFTTrainer(
            make_model(), make_args(), Dataset.from_list(ROWS), priorities=source, processing_class=tokenizer
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
