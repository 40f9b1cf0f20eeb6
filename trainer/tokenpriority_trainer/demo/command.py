"""`tokenpriority demo`.

Knows the options, exit codes and one-line errors. Everything heavy is imported once the options are known to be good.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Annotated

import typer


def demo(
    seeds: Annotated[
        int, typer.Option(min=1, help="Fine-tuning sets, each with its own noise and order; above 1, mean and spread.")
    ] = 1,
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for report, results, models and logs.")] = Path(
        "demo"
    ),
) -> None:
    """Train small models on real text and compare uniform, positive and signed priorities from a real server."""
    os.environ["no_proxy"] = "127.0.0.1"  # the server is on this machine, whatever proxy is configured
    from rich.console import Console

    from tokenpriority.errors import TokenPriorityError

    console = Console()
    console.print("Loading torch and transformers ...")
    began = time.monotonic()
    try:
        from tokenpriority_trainer.demo.corpus import CorpusTooSmall
        from tokenpriority_trainer.demo.processes import ChildFailed
        from tokenpriority_trainer.demo.run import run_demo
        from tokenpriority_trainer.demo.scale import Scale
        from tokenpriority_trainer.demo.table import table
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("tokenpriority"):
            raise  # a bug of ours, not a missing library
        typer.echo(f'demo needs {error.name}: pip install "tokenpriority[service,trainer]"', err=True)
        raise typer.Exit(1) from None
    try:
        results = run_demo(Scale(), seeds=seeds, out=out, console=console)
    except (ChildFailed, CorpusTooSmall, TimeoutError, TokenPriorityError) as error:
        typer.echo(f"demo: {error}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("demo: stopped; the server and the trainings have been stopped too", err=True)
        raise typer.Exit(130) from None
    console.print(table(results))
    console.print(f"{out / 'report.html'} and {out / 'results.json'} written, {time.monotonic() - began:.0f} s in all")
