"""The command line `tokenpriority`.

    app.py       the commands and their options
    group.py     commands of other packages, imported only when run
    methods.py   methods
    score.py     score: a file in, a Parquet file out
    coverage.py  coverage: how much of a file is stored
    usage.py     usage, limits: what teams asked for and may ask for
    waiting.py   how long a command waits
    rows.py      reading JSONL and Parquet
    parts.py     the resumable output
    inspect.py   inspect: tokens coloured by priority

Needs the extra `cli` (typer, rich, pyarrow), and imports it inside `main` alone.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; the entry point of the console script."""
    try:
        from tokenpriority.cli.app import app

        app()
    except ModuleNotFoundError as error:  # while it runs too: only `score` needs pyarrow
        if error.name not in ("typer", "rich", "pyarrow"):
            raise
        sys.exit(f'The command line needs {error.name}: pip install "tokenpriority[cli]"')
