"""What a trainer asks of a scoring server about every batch.

Knows the names of what is asked. Knows nothing of trainers, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenpriority.depth import Wanted, check_depth

if TYPE_CHECKING:
    from tokenpriority.client import Client


@dataclass(frozen=True, slots=True)
class Source:
    """Priorities of a server, as `Client.source` makes it. Raises ValueError for a depth that is none."""

    client: Client
    method: str
    """A method of `tokenpriority methods`."""
    params: Mapping[str, Any]
    """Its parameters."""
    model: str
    """Name of the reference on the server."""
    depth: Wanted
    """Batches ahead of training, or "auto"."""

    def __post_init__(self) -> None:
        check_depth(self.depth)
