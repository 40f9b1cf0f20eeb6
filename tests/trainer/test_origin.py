"""`priorities` as a user's own script gives it: a client's source against the same by hand, a column, or nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from datasets import Dataset

from tokenpriority import Client, InvalidParameter, NotFound
from tokenpriority_trainer import (
    ColumnSource,
    FrozenCopies,
    LocalSource,
    PrioritySFTTrainer,
    ServerSource,
    Weighting,
)
from tokenpriority_trainer.errors import ConfigError

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def train(make_model: Any, make_args: Any, tokenizer: Any, text: str) -> Callable[..., Any]:
    """A script: a trainer with these arguments, after two steps."""

    def run(**given: Any) -> Any:
        trainer = PrioritySFTTrainer(
            model=make_model(),
            args=make_args(max_steps=2, per_device_train_batch_size=4),
            train_dataset=Dataset.from_list([{"text": text[60 * i : 60 * i + 30 + 5 * i]} for i in range(8)]),
            processing_class=tokenizer,
            **given,
        )
        trainer.train()
        return trainer

    return run


def assert_equal(found: Any, expected: Any) -> None:
    assert found.state.global_step == expected.state.global_step == 2
    for (name, mine), other in zip(found.model.named_parameters(), expected.model.parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.parametrize(
    ("method", "params"),
    [("prift_mass", {"tau": 0.1}), ("token_cleaning", {"keep": 0.6}), ("forgetting", {"threshold": 0.0})],
)
def test_a_source_is_its_server_and_its_methods_own_weighting(
    client: Client, train: Any, method: str, params: dict[str, Any]
) -> None:
    short = train(priorities=client.source(method, params, depth=8))
    by_hand = train(priorities=ServerSource(client, method, params))
    assert short.weighting == by_hand.weighting == Weighting.of(method, params)
    assert_equal(short, by_hand)


def test_a_local_method_brings_its_own_weighting_and_a_live_one_by_hand_is_refused(client: Client, train: Any) -> None:
    assert train(priorities=LocalSource("spans", {"outside": 1.0})).weighting == Weighting.of("spans")
    with pytest.raises(ConfigError, match=r"priorities: 'dft' is computed in the forward pass; give client.source"):
        train(priorities=ServerSource(client, "dft"))


def test_a_weighting_that_was_given_stays(client: Client, train: Any) -> None:
    rule = Weighting.of("prift_mass", clip=(-1.0, 0.5))
    assert train(priorities=client.source("prift_mass"), weighting=rule).weighting is rule


def test_a_live_method_that_reads_no_server_needs_none(train: Any) -> None:
    with Client(NOWHERE, retries=0) as unreachable:
        short = train(priorities=unreachable.source("dft"))
    assert isinstance(short.priorities, LocalSource)
    assert_equal(short, train(priorities=LocalSource(), weighting=Weighting.of("dft")))


def test_a_live_method_reads_the_servers_reference(client: Client, train: Any) -> None:
    short = train(priorities=client.source("iw_sft", {"unit": "token"}))
    rule = Weighting.of("iw_sft", {"unit": "token"})
    assert_equal(short, train(priorities=ServerSource(client), weighting=rule))


def test_a_live_method_reads_the_copy_beside_the_student(train: Any, make_model: Any, reference_seed: int) -> None:
    with Client(NOWHERE, retries=0) as unreachable:
        copied = train(
            priorities=unreachable.source("iw_sft", {"unit": "token"}),
            local=FrozenCopies(reference=make_model(reference_seed)),
        )
    assert isinstance(copied.priorities, LocalSource)


def test_the_column_is_read_where_nothing_is_said(make_trainer: Any, make_args: Any, signed: Any, rows: Any) -> None:
    made = make_trainer(signed)

    def script(dataset: Any, **given: Any) -> Any:
        model, words = copy.deepcopy(made.model), made.processing_class
        return PrioritySFTTrainer(model, make_args(), Dataset.from_list(dataset), processing_class=words, **given)

    found = script(signed)
    assert isinstance(found.priorities, ColumnSource)
    made.train()
    found.train()
    for mine, other in zip(found.model.parameters(), made.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert isinstance(script(rows, weighting=Weighting.of("dft")).priorities, LocalSource)
    with pytest.raises(ConfigError, match="priorities: not given, and the train dataset has no column 'priorities'"):
        script(rows)


def test_a_dataset_is_needed(make_model: Any) -> None:
    with pytest.raises(ConfigError, match="train_dataset: is required"):
        PrioritySFTTrainer(make_model(), priorities=LocalSource())


@pytest.mark.parametrize(
    ("asked", "given", "error", "what"),
    [
        (("prift_mas",), {}, NotFound, "prift_mas"),
        (("prift_mass", {"tao": 1}), {}, InvalidParameter, "tao"),
        (("prift_mass",), {"weighting": Weighting.of("dft")}, ConfigError, "weighting: 'dft' is computed in the forwa"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_sent(
    train: Any, asked: Any, given: dict[str, Any], error: type[Exception], what: str
) -> None:
    with Client(NOWHERE, retries=0) as unreachable, pytest.raises(error, match=what):
        train(priorities=unreachable.source(*asked), **given)


def test_a_model_the_server_lacks_is_refused(client: Client, train: Any) -> None:
    with pytest.raises(ConfigError, match="the server has no model 'teacher'; it has reference, base"):
        train(priorities=client.source(model="teacher"))


@pytest.mark.parametrize("by_hand", [False, True])
def test_token_ids_that_mean_something_else_are_refused(
    client: Client, tokenizer: Any, make_model: Any, make_args: Any, by_hand: bool
) -> None:
    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["tokenpriority"])
    trainer = PrioritySFTTrainer(
        make_model(vocab_size=401),
        make_args(),
        Dataset.from_list([{"text": "import json"}]),
        priorities=ServerSource(client) if by_hand else client.source(),
        processing_class=larger,
    )
    with pytest.raises(ConfigError, match="tokenizer has 401 tokens, the server's model 'reference' only 400"):
        trainer.train()
