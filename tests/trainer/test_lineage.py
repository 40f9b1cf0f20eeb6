"""A script's run that goes on from a checkpoint: refused, by name, if its weights come from elsewhere now.

Real servers over real sockets; the second is what a server is that was begun again with another model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from run_config import writer
from tokenpriority import Client
from tokenpriority_trainer import (
    ColumnSource,
    LocalSource,
    PrioritySFTTrainer,
    ServerSource,
    Store,
    StoredSource,
    Weighting,
)
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.run import run

ALLOW = r"train\(allow_changes=True\) goes on all the same"


@pytest.fixture(scope="module")
def other(serve: Any, save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server whose `reference` is another model, and may still be loading."""
    folder = tmp_path_factory.mktemp("other")
    with serve(folder, {"reference": save_student(folder / "reference", 12)}) as url:
        yield url


@pytest.fixture
def changed(other: str) -> Iterator[Client]:
    with Client(other, timeout=60) as made:
        yield made


@pytest.fixture
def script(make_model: Any, make_args: Any, tokenizer: Any, text: str) -> Callable[..., Any]:
    def make(priorities: Any, steps: int, rows: Any = None, **rest: Any) -> Any:
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": steps, "per_device_train_batch_size": 4}
        return PrioritySFTTrainer(
            make_model(),
            make_args(**saving, learning_rate=0.1),
            Dataset.from_list(rows or [{"text": text[60 * i : 60 * i + 40]} for i in range(8)]),
            priorities=priorities,
            processing_class=tokenizer,
            **rest,
        )

    return make


@pytest.fixture
def begun(tmp_path: Path) -> str:
    return str(tmp_path / "out" / "checkpoint-2")


def parameters(trainer: Any) -> list[torch.Tensor]:
    return [parameter.detach() for parameter in trainer.model.parameters()]


@pytest.mark.parametrize("projected", [False, True])
def test_another_model_on_the_server_is_refused_or_allowed_and_told(
    client: Client, changed: Client, script: Any, begun: str, tokenizer: Any, projected: bool, caplog: Any
) -> None:
    def source(of: Client) -> Any:
        return ServerSource(of, "prift_mass", tokenizer=tokenizer) if projected else of.source("prift_mass")

    script(source(client), 2).train()
    refused = script(source(changed), 3)
    with pytest.raises(ConfigError) as error:
        refused.train(resume_from_checkpoint=begun)
    was, now = (next(m.fingerprint for m in c.models() if m.name == "reference") for c in (client, changed))
    assert was != now
    field = f'fingerprints.reference: was "{was}" at checkpoint-2, is "{now}"'
    assert re.fullmatch(rf"resume_from_checkpoint: {re.escape(field)}; {ALLOW}", str(error.value))
    assert refused.state.global_step == 2

    allowed = script(source(changed), 3)
    allowed.train(resume_from_checkpoint=begun, allow_changes=True)
    assert f"train(allow_changes=True): {field}" in caplog.text
    script(source(changed), 4).train(resume_from_checkpoint=begun.replace("-2", "-3"))  # which is of the other model


def test_the_same_model_goes_on(
    client: Client, server: str, script: Any, begun: str, tmp_path: Path, caplog: Any
) -> None:
    whole = script(client.source("prift_mass"), 3)
    whole.train()
    with Client(server) as another:
        resumed = script(another.source("prift_mass"), 3)
        resumed.train(resume_from_checkpoint=begun)
        by_hand = script(ServerSource(another, "prift_mass", store=tmp_path / "weights.db"), 3)
        by_hand.train()
    stored = script(StoredSource(Store.open(tmp_path / "weights.db")), 3)
    stored.train(resume_from_checkpoint=begun)
    assert [record for record in caplog.records if "checkpoint-2" in record.getMessage()] == []
    for each in (resumed, stored):
        assert all(map(torch.equal, parameters(each), parameters(whole)))


@pytest.mark.parametrize(
    ("then", "now", "what"),
    [
        (("prift_mass", {"tau": 0.1}), ("prift_mass", {"tau": 0.2}), "priorities.params.tau: was 0.1 .*, is 0.2"),
        (("prift_mass",), ("prift_prob",), 'priorities.method: was "prift_mass" at checkpoint-2, is "prift_prob"'),
        (("dft",), ("iw_sft", {"unit": "token"}), 'fingerprints.reference: was not set at checkpoint-2, is "'),
        (("iw_sft",), ("iw_sft", {"temperature": 2.0}), 'composition.live weight: was "iw_sft .* at checkpoint-2, is '),
    ],
)
def test_another_question_is_refused(client: Client, script: Any, begun: str, then: Any, now: Any, what: str) -> None:
    script(client.source(*then), 2).train()
    with pytest.raises(ConfigError, match=f"^resume_from_checkpoint: {what}.*; {ALLOW}"):
        script(client.source(*now), 3).train(resume_from_checkpoint=begun)


def test_a_column_in_the_place_of_the_server_is_refused(client: Client, script: Any, begun: str, rows: Any) -> None:
    script(client.source(), 2, rows).train()
    weighted = [{**row, "priorities": [1.0] * len(row["input_ids"])} for row in rows]
    with pytest.raises(ConfigError, match=r'priorities\.source: was not set at checkpoint-2, is "ColumnSource"'):
        script(ColumnSource(), 3, weighted).train(resume_from_checkpoint=begun)


def test_another_local_method_is_refused(script: Any, begun: str) -> None:
    rule = Weighting.of("uniform")
    script(LocalSource("spans", {"outside": 0.5}), 2, weighting=rule).train()
    with pytest.raises(ConfigError, match=r'priorities\.method: was "spans" at checkpoint-2, is "uniform"'):
        script(LocalSource(), 3, weighting=rule).train(resume_from_checkpoint=begun)


def test_a_checkpoint_that_does_not_say_goes_on_with_a_warning(
    client: Client, script: Any, begun: str, caplog: Any
) -> None:
    script(client.source(), 2).train()
    file = Path(begun, "trainer_state.json")
    state = json.loads(file.read_text(encoding="utf-8"))
    del state["stateful_callbacks"]["tokenpriority_lineage"]
    file.write_text(json.dumps(state), encoding="utf-8")
    trainer = script(client.source(), 3)
    trainer.train(resume_from_checkpoint=begun)
    assert trainer.state.global_step == 3
    assert "checkpoint-2 does not say where its weights came from" in caplog.text


def test_the_command_line_compares_for_itself(
    server: str, save_student: Callable[..., Path], text: str, tmp_path: Path
) -> None:
    write = writer(tmp_path, save_student(tmp_path / "student"), text)
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    run(load_config(write(priorities={"url": server, "method": "prift_mass"}, training=saving)))
    state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text(encoding="utf-8"))
    assert "tokenpriority_guard" in state["stateful_callbacks"]
    assert "tokenpriority_lineage" not in state["stateful_callbacks"]
