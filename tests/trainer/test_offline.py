"""Training from a store: with the weights a server gave, bit by bit, asking nothing, and only if all are there."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
import typer
from datasets import Dataset
from typer.testing import CliRunner

from launching import TWO, launch
from run_config import assert_close, metrics, writer
from tokenpriority import Client
from tokenpriority_trainer import PrioritySFTTrainer, ServerSource, Store, StoredSource, Weighting
from tokenpriority_trainer.command import train
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError, WeightError
from tokenpriority_trainer.fetching import fetch_weights
from tokenpriority_trainer.run import run

Write = Callable[..., Path]

NOWHERE = "http://127.0.0.1:9"
PRIFT = {"method": "prift_prob"}


@pytest.fixture(scope="session")
def student(save_student: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_student(tmp_path_factory.mktemp("student"), attention_dropout=0.1)


@pytest.fixture
def write(tmp_path: Path, student: Path, text: str) -> Write:
    return writer(tmp_path, student, text)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return str(tmp_path / "weights.db")


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def forget_one(store: str) -> None:
    with sqlite3.connect(store) as database:
        database.execute("DELETE FROM scores WHERE rowid = (SELECT min(rowid) FROM scores)")
    database.close()


@pytest.mark.parametrize(
    ("priorities", "training"),
    [
        (PRIFT, {"packing": True, "max_steps": 5}),
        ({"method": "token_cleaning", "params": {"keep": 0.5}, "student": "iw_sft"}, {}),
        ({"method": "npo"}, {"max_steps": -1, "num_train_epochs": 2}),
    ],
    ids=["packed, two epochs", "two models and their log-probs", "log-probs alone"],
)
def test_a_run_without_a_server_is_the_run_with_it(
    write: Write, server: str, store: str, tmp_path: Path, priorities: dict[str, Any], training: dict[str, Any]
) -> None:
    """Spans are laid over in all of them. The student has dropout: a random number drawn by the check would show."""
    run(load_config(write("online", priorities={"url": server, **priorities}, training=training)))
    run(load_config(write("filling", priorities={"url": server, "store": store, **priorities}, training=training)))
    offline = load_config(
        write("offline", priorities={"url": NOWHERE, "store": store, **priorities}, training=training)
    )
    run(offline, offline=True)
    online = summary(tmp_path / "online")
    for name in ("filling", "offline"):
        assert_close(tmp_path / name, tmp_path / "online", atol=0)
        found = summary(tmp_path / name)
        assert found["complete"] is True
        for fact in ("steps", "tokens", "train_loss", "composition", "fingerprint", "fingerprints"):
            assert found[fact] == online[fact], fact
        assert [line["loss"] for line in metrics(tmp_path / name)] == [
            line["loss"] for line in metrics(tmp_path / "online")
        ]
    assert summary(tmp_path / "offline")["wait_seconds"] == 0


def test_fetch_brings_every_document_and_trains_nothing(
    write: Write, server: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(write(priorities={"url": server, "store": store, **PRIFT}, training={"packing": True}))
    fetch_weights(config)
    assert not list((tmp_path / "run").glob("*"))
    first = capsys.readouterr().out
    forget_one(store)
    fetch_weights(config)
    again = capsys.readouterr().out
    assert first.startswith(f"{store} holds all 24 documents (")
    assert "0 (0) were stored, 24 (" in first
    assert "23 (" in again
    assert ", 1 (" in again
    run(load_config(write(priorities={"store": store, **PRIFT}, training={"packing": True})), offline=True)
    assert summary(tmp_path / "run")["complete"] is True


def test_a_run_goes_on_without_the_server_it_began_with(
    write: Write, server: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    run(load_config(write("whole", priorities={"url": server, "store": store, **PRIFT}, training=saving)))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "part" / "checkpoint-2")
    run(load_config(write("part", priorities={"store": store, **PRIFT}, training=saving)), resume=True, offline=True)
    assert "goes on from" in capsys.readouterr().err
    assert_close(tmp_path / "part", tmp_path / "whole", atol=0)


def test_a_store_that_lacks_a_document_is_refused_before_the_first_step(
    write: Write, server: str, store: str, tmp_path: Path
) -> None:
    config = load_config(write(priorities={"url": server, "store": store, **PRIFT}))
    fetch_weights(config)
    forget_one(store)
    with pytest.raises(ConfigError) as refused:
        run(config, offline=True)
    said = str(refused.value)
    assert said.startswith(f"priorities.store: {store} lacks 1 of 24 documents of the train dataset (")
    assert said.endswith(" tokens); with the server on, --fetch brings them")
    assert not list((tmp_path / "run").glob("*"))


BOTH = {"url": NOWHERE, "store": "weights.db"}


@pytest.mark.parametrize(
    ("priorities", "flags", "said"),
    [
        ({"url": NOWHERE, **PRIFT}, ["--offline"], "--offline: needs priorities.store"),
        ({"store": "weights.db", **PRIFT}, ["--offline"], "priorities.store: there is no weights.db"),
        ({"store": "weights.db", **PRIFT}, [], "priorities.store: keeps the answers of a server; set priorities.url"),
        ({"store": "weights.db", **PRIFT}, ["--fetch"], "priorities.store: keeps the answers of a server"),
        (
            {"url": NOWHERE, "method": "dft"},
            ["--fetch"],
            "--fetch: needs priorities.store, priorities.url, and a method",
        ),
        ({**BOTH, "method": "dft"}, ["--fetch"], "--fetch: needs priorities.store, priorities.url, and a method"),
        (
            BOTH,
            ["--fetch", "--offline"],
            "--fetch: asks the server and trains nothing, so it does not go with --offline",
        ),
        (BOTH, ["--fetch", "--resume"], "--fetch: asks the server and trains nothing, so it does not go with --resume"),
        ({**BOTH, "tokenizers": "project"}, [], "store keeps scores of the student's own tokens; leave out tokenizers"),
        ({**BOTH, "patience": -1}, [], "priorities.patience: Input should be greater than or equal to 0, got -1"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(
    write: Write, priorities: dict[str, Any], flags: list[str], said: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    app = typer.Typer()
    app.command()(train)
    done = CliRunner().invoke(app, [str(write(priorities=priorities)), *flags])
    assert done.exit_code == 1
    assert said in done.stderr.splitlines()[-1]


def test_no_server_is_needed_without_a_flag_where_none_is_read(write: Write, store: str, tmp_path: Path) -> None:
    run(load_config(write(priorities={"store": store, "method": "dft"}, training={"max_steps": 1})))
    assert summary(tmp_path / "run")["complete"] is True
    assert not Path(store).exists()


class Counting(httpx.AsyncHTTPTransport):
    """The network, counting the sequences that are sent to be scored."""

    def __init__(self) -> None:
        super().__init__()
        self.sequences = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/priorities":
            from tokenpriority import wire
            from tokenpriority.schema import PriorityRequest

            self.sequences += len(wire.decode(await request.aread(), PriorityRequest, wire.MSGPACK).sequences)
        return await super().handle_async_request(request)


@pytest.fixture
def script(make_model: Any, make_args: Any, tokenizer: Any, text: str) -> Callable[..., Any]:
    def make(source: Any, rows: Any = None, **changes: Any) -> Any:
        data = rows or Dataset.from_list([{"text": text[60 * i : 60 * i + 30 + 5 * i]} for i in range(12)])
        options = {"max_steps": 7, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **changes}
        return PrioritySFTTrainer(
            make_model(attention_dropout=0.1),
            make_args(**options, learning_rate=0.1),
            data,
            priorities=source,
            weighting=Weighting.of("prift_prob", student="iw_sft"),
            processing_class=tokenizer,
        )

    return make


def trained(trainer: Any) -> list[torch.Tensor]:
    trainer.train()
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def test_a_document_is_asked_about_once_in_all_epochs_and_runs(server: str, store: str, script: Any) -> None:
    """In a script of one's own; the last run has no client at all."""
    network = Counting()
    with Client(server, transport=network) as client:
        plain = trained(script(ServerSource(client, "prift_prob")))
        assert network.sequences > 24, "without a store every epoch asks again"
        network.sequences = 0
        probe = 1  # text of each run, to compare the tokenizers
        filling = trained(script(ServerSource(client, "prift_prob", store=store)))
        assert network.sequences == 12 + probe
        filled = trained(script(ServerSource(client, "prift_prob", store=store)))
        assert network.sequences == 12 + 2 * probe
        with pytest.raises(ConfigError, match='scores of method "prift_prob", this run asks for "uniform"'):
            ServerSource(client, "uniform", store=store)
    stored = trained(script(StoredSource(Store.open(store))))
    for found in (filling, filled, stored):
        assert all(map(torch.equal, found, plain))


def test_a_script_is_refused_what_cannot_be_checked_or_is_missing(server: str, store: str, script: Any) -> None:
    with Client(server) as client:
        asking = ServerSource(client, "prift_prob", store=store)
    with pytest.raises(ConfigError, match="lacks 12 of 12 documents of the train dataset"):
        script(StoredSource(Store.open(store)))
    streamed = Dataset.from_list([{"text": "import json"}] * 4).to_iterable_dataset()
    with pytest.raises(ConfigError, match="the train dataset is streamed: what a store holds of it cannot be known"):
        script(StoredSource(Store.open(store)), streamed)
    batch = next(iter(script(asking).get_train_dataloader()))
    with pytest.raises(WeightError, match=r"the document at row 0, tokens 0 to .* of the batch: not in the store"):
        next(StoredSource(Store.open(store)).stream([batch]))


SCRIPT = """
import sqlite3, sys
from pathlib import Path
from tokenpriority_trainer.config import load_config
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.fetching import fetch_weights
from tokenpriority_trainer.group import end_group
from tokenpriority_trainer.run import run
import torch.distributed as dist

online, offline, store = sys.argv[1:]
fetch_weights(load_config(Path(online)))
run(load_config(Path(offline)), offline=True)
if dist.get_rank() == 0:
    with sqlite3.connect(store) as database:
        database.execute("DELETE FROM scores WHERE rowid = (SELECT min(rowid) FROM scores)")
    database.close()
dist.barrier()
try:
    run(load_config(Path(offline)), offline=True)
except ConfigError as error:
    print(f"{dist.get_rank()} refused: {error}", flush=True)
end_group()
"""


@pytest.mark.slow
def test_two_processes_fetch_train_and_refuse_alike(write: Write, server: str, store: str, tmp_path: Path) -> None:
    """Steps on the same global batches as one process, in float32 and without dropout, so nearly equal."""
    sgd = {"max_steps": 3, "optim": "sgd", "learning_rate": 1.0, "lr_scheduler_type": "constant"}
    model = {"path": str(tmp_path / "plain")}
    shutil.copytree(load_config(write()).model.path, model["path"])
    changed = Path(model["path"], "config.json")
    changed.write_text(json.dumps({**json.loads(changed.read_text()), "attention_dropout": 0.0}))
    whole = {"url": server, "store": store, **PRIFT}
    two = {"model": model, "training": {**sgd, "gradient_accumulation_steps": 1}}
    files = [write("fetch", priorities=whole, **two), write("two", priorities={"store": store, **PRIFT}, **two)]
    (tmp_path / "both.py").write_text(SCRIPT, encoding="utf-8")
    done = launch(*TWO, str(tmp_path / "both.py"), *map(str, files), store)
    assert done.stdout.count("holds all 24 documents") == 1
    for rank in (0, 1):
        assert f"{rank} refused: priorities.store: {store} lacks 1 of 24 documents" in done.stdout
    run(load_config(write("one", priorities={"url": server, **PRIFT}, model=model, training=sgd)))
    assert_close(tmp_path / "two", tmp_path / "one", atol=1e-5)
