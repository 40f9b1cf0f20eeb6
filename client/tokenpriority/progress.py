"""A progress bar for long calls.

Knows rich, imported only where a bar is wanted. Knows nothing of what is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from tokenpriority.scores import Scores

Advance = Callable[[Sequence[Any]], None]


def progress_bar(wanted: bool, sequences: Iterable[Any], doing: str = "scoring") -> AbstractContextManager[Advance]:
    """A context giving a function to call with each group of results. Raises ImportError if rich is missing."""
    if not wanted:
        return nullcontext(lambda _: None)
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError as error:
        raise ImportError('progress=True needs rich: pip install "tokenpriority[cli]"') from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sequences, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    return _shown(bar, len(sequences) if isinstance(sequences, Sized) else None, doing)


@contextmanager
def _shown(bar: Any, total: int | None, doing: str) -> Iterator[Advance]:
    tokens = 0
    with bar:
        task = bar.add_task(doing, total=total, tokens=0)

        def advance(results: Sequence[Any]) -> None:
            nonlocal tokens
            tokens += sum(len(r.token_ids) if isinstance(r, Scores) else getattr(r, "tokens", 0) for r in results)
            bar.update(task, advance=len(results), tokens=tokens)

        yield advance
