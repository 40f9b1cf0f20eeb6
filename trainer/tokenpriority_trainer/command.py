"""`tokenpriority train`: a configuration file on the command line.

Knows arguments, exit codes and one-line errors. Everything heavy is imported once the arguments are known to be good.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenpriority.errors import TokenPriorityError


def train(
    config: Annotated[Path, typer.Argument(help="TOML file; see trainer/README.md.", show_default=False)],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last whole checkpoint in output_dir, or begin.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="With --resume: go on though models or settings have changed.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Bring the weights of all the data into the store, and train nothing.")
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="Take all weights from the store; no server is asked for anything.")
    ] = False,
) -> None:
    """Fine-tune a model with a signed priority on every token."""
    from tokenpriority_trainer.config import load_config
    from tokenpriority_trainer.errors import ConfigError

    try:
        settings = load_config(config)
        if fetch:
            for name, given in (("--resume", resume), ("--allow-changes", allow_changes), ("--offline", offline)):
                if given:
                    raise ConfigError(f"--fetch: asks the server and trains nothing, so it does not go with {name}")
            from tokenpriority_trainer.fetching import fetch_weights

            fetch_weights(settings)
        else:
            from tokenpriority_trainer.run import run

            run(settings, resume=resume, allow_changes=allow_changes, offline=offline)
        from tokenpriority_trainer.group import end_group

        end_group()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tokenpriority"):
            raise  # a bug of ours, not a missing library
        typer.echo(f'train needs {error.name}: pip install "tokenpriority[trainer]"', err=True)
        raise typer.Exit(1) from None
    except TokenPriorityError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from None
