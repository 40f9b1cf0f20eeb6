"""Token Cleaning, self-evolving (arXiv 2502.01968): each part of the data is cleaned by the model trained so far.

    python -m tokenpriority_trainer.recipes.self_evolving CONFIG.toml [--subsets 5] [--keep 0.6]

CONFIG.toml is that of `tokenpriority train`, without a server: `[model] path` is the base. The data is split in order
into subsets. The first is trained on whole, from the base. Each later one is scored under the base and the model so
far, whose gain log p_model - log p_base ranks all its tokens; the best share is trained on, from the model so far. The
base in the score never changes. OUTPUT_DIR/round-N holds each model, its configuration and the calibration it used.

Knows the order of things. Every part is a command or a call that anyone can make: serve, calibrate, train.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from datasets import Dataset

from tokenpriority import Calibration, Client
from tokenpriority.errors import TokenPriorityError
from tokenpriority_trainer.config import Config, load_config
from tokenpriority_trainer.demo.processes import ChildFailed, Children, wait_for
from tokenpriority_trainer.demo.server import Server
from tokenpriority_trainer.demo.toml import write_toml
from tokenpriority_trainer.errors import ConfigError
from tokenpriority_trainer.loading import load_rows

SUBSETS, KEEP = 5, 0.6
"""The authors' number of subsets and share of tokens kept."""

_METHOD = "token_cleaning"
_SECONDS = 7 * 24 * 3600.0
_FORMS = {"input_ids": "token_ids"} | {name: name for name in ("text", "messages", "prompt", "completion")}
"""Column -> the request's name for it."""


def self_evolve(config: Config, children: Children, *, subsets: int = SUBSETS, keep: float = KEEP) -> list[Path]:
    """The folder of each round's model, last the result. Raises ConfigError, or ChildFailed if a step fails."""
    if config.priorities.url is not None:
        raise ConfigError("priorities.url: the recipe starts servers of its own, so none is given")
    rows = load_rows("train", config.data.train)
    if not 2 <= subsets <= len(rows):
        raise ConfigError(f"subsets: must be from 2 to the {len(rows)} examples, got {subsets}")
    out = Path(config.training["output_dir"])
    model, models = Path(config.model.path), []
    for number in range(subsets):
        folder = out / f"round-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        subset = rows.shard(subsets, number, contiguous=True)
        subset.to_json(folder / "data.jsonl")
        if number == 0:
            _train(config, children, model, folder, {"method": "uniform"})
        else:
            _clean(config, children, model, folder, subset, keep)
        model = folder
        models.append(folder)
    return models


def _clean(config: Config, children: Children, model: Path, folder: Path, subset: Dataset, keep: float) -> None:
    """One later round: serve the base and the model so far, rank the subset's tokens, train on the best."""
    server = Server(children, {"reference": model, "base": Path(config.model.path)}, folder / "server.toml")
    try:
        server.wait_until_ready()
        file = folder / "calibration.json"
        _calibrate(server.url, subset, keep).save(file)
        priorities = {"url": server.url, "calibration": file}
        _train(config, children, model, folder, priorities, server)
    finally:
        server.child.ask_to_end()
        server.child.end()


def _calibrate(url: str, subset: Dataset, keep: float) -> Calibration:
    with closing(Client(url)) as client:
        return client.calibrate(_sequences(subset), method=_METHOD, params={"keep": keep})


def _sequences(rows: Dataset) -> Iterator[dict[str, Any]]:
    """The examples as the server takes them."""
    for row in rows:
        sequence = {name: row[column] for column, name in _FORMS.items() if row.get(column) is not None}
        if not sequence:
            raise ConfigError(f"data.train: an example has none of the columns {', '.join(_FORMS)}")
        yield sequence


def _train(
    config: Config,
    children: Children,
    model: Path,
    folder: Path,
    priorities: dict[str, Any],
    server: Server | None = None,
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "model": {"path": model, "dtype": config.model.dtype},
        "data": {"train": folder / "data.jsonl"},
        "priorities": priorities,
        "training": {**config.training, "output_dir": folder},
    }
    write_toml(folder / "train.toml", tables)
    child = children.start(folder.name, ["train", str(folder / "train.toml")])
    others = [] if server is None else [server.child]
    wait_for(lambda: not child.running(), others, seconds=_SECONDS, what=folder.name)


def main(
    config: Annotated[Path, typer.Argument(help="The configuration of a training run, without a server.")],
    subsets: Annotated[int, typer.Option(help="Parts of the data, each trained on in turn.")] = SUBSETS,
    keep: Annotated[float, typer.Option(help="Share of the tokens of every later part that is trained on.")] = KEEP,
) -> None:
    """Token Cleaning, self-evolving."""
    os.environ["no_proxy"] = "127.0.0.1"
    try:
        settings = load_config(config)
        with Children(Path(settings.training.get("output_dir", ".")) / "logs", {}) as children:
            models = self_evolve(settings, children, subsets=subsets, keep=keep)
    except (ChildFailed, TimeoutError, TokenPriorityError) as error:
        typer.echo(f"self_evolving: {error}", err=True)
        raise typer.Exit(1) from None
    typer.echo(f"{models[-1]} holds the model after {len(models)} rounds")


if __name__ == "__main__":
    typer.run(main)
