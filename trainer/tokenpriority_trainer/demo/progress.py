"""Progress bars of named stages, and how long each stage took.

Knows bars and clocks. Knows nothing of what is done.
"""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Stage:
    """One bar, a context: it runs from its beginning to its end. `total` None shows that something is going on."""

    def __init__(self, bars: Bars, seconds: dict[str, float], name: str, total: int | None) -> None:
        self._bars, self._seconds, self._name = bars, seconds, name
        self._total = total or 1
        self._task = bars.add_task(name, total=total)
        self._began = time.monotonic()

    def to(self, done: int, note: str = "") -> None:
        """So much of the total is done; `note` stands beside the name."""
        self._bars.update(self._task, completed=done, description=f"{self._name} {note}".rstrip())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._seconds[self._name] = time.monotonic() - self._began
        if kind is None:
            self._bars.update(self._task, total=self._total, completed=self._total)
        self._bars.stop_task(self._task)


class Progress:
    """A context that shows the bars of its stages."""

    def __init__(self, console: Console) -> None:
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self.seconds: dict[str, float] = {}
        """Wall-clock seconds of every stage that has ended, by its name."""

    def stage(self, name: str, total: int | None = None) -> Stage:
        """A new bar; stages may overlap."""
        return Stage(self._bars, self.seconds, name, total)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
