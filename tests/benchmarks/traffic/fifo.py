"""Order of arrival, whoever asks: what the server's fair queue is compared with."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TypeVar

from tokenpriority_service.scheduling.fair_queue import FairQueue, Flow

T = TypeVar("T", bound=Hashable)

EVERYONE = Flow("everyone", "bulk", 1.0)


class Fifo(FairQueue[T]):
    """A fair queue to which all are one team of one class."""

    def push(self, item: T, flow: Flow, tokens: int) -> None:
        """Queue an item behind all others."""
        super().push(item, EVERYONE, tokens)

    def move(self, item: T, flow: Flow) -> None:
        """It stays where it is."""
