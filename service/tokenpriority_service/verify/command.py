"""`tokenpriority verify`.

Knows the options and the exit status: 0 if at least one engine could be compared with transformers and all that could
be agree, 1 if not, 2 if the options cannot be used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tokenpriority_service.engines.engine import DTYPES


def verify(
    model: Annotated[str, typer.Option(help="Folder of a transformers checkpoint, or a hub name.", show_default=False)],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    sequences: Annotated[int, typer.Option(min=4, help="How many sequences.")] = 32,
    longest: Annotated[int, typer.Option(min=2, help="Tokens of the longest, if the model takes so many.")] = 1024,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs vLLM splits the model over.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON in place of the tables.")] = False,
) -> None:
    """Compare vLLM's evidence for a model with transformers', offline.

    The same sequences are scored by transformers in the dtype, by transformers in float64 (the truth, if it fits in
    memory), by vLLM's fast path and by vLLM's prompt_logprobs, one after the other. Exit status 1 if an engine
    disagrees or none could be compared.
    """
    if dtype not in DTYPES:
        _fail(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if Path(model).is_absolute() and not Path(model).is_dir():
        _fail(f"--model: no such folder: {model}")
    from rich.console import Console

    from tokenpriority_service.engines import missing
    from tokenpriority_service.verify.report import print_report, to_json
    from tokenpriority_service.verify.verification import verify_model

    if (lacking := missing("vllm")) is not None:
        _fail(lacking)
    try:
        settings = {"tensor_parallel": tensor_parallel}
        found = verify_model(model, dtype=dtype, count=sequences, longest=longest, settings=settings)
    except (ValueError, OSError) as error:
        _fail(f"--model: {str(error).splitlines()[0]}")
    if as_json:
        typer.echo(to_json(found))
    else:
        print_report(found, Console())
    raise typer.Exit(0 if found.agrees else 1)


def _fail(message: str) -> NoReturn:
    typer.echo(f"tokenpriority verify: {message}", err=True)
    raise typer.Exit(2)
