"""What the metrics read of a running server at the moment they are read.

Knows where each size is found. Measures nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tokenpriority_service.models import Models
from tokenpriority_service.store import LayeredStore
from tokenpriority_service.telemetry.metrics import Queued, Stored
from tokenpriority_service.web.access import Gate


class ServerSources:
    """`metrics.Sources` of one server."""

    def __init__(self, gate: Gate, models: Models, store: LayeredStore) -> None:
        self._gate = gate
        self._models = models
        self._store = store

    @property
    def in_progress(self) -> int:
        """Requests being answered."""
        return self._gate.active

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""
        return self._gate.draining

    def ready(self) -> Mapping[str, bool]:
        """Every model by name, and whether it can score now."""
        unready = self._models.unready
        return {name: name not in unready for name in self._models.names}

    def queued(self) -> Iterator[Queued]:
        """What waits."""
        for name, model in self._models.ready.items():
            for (team, service_class), tokens in model.dispatcher.queued.items():
                yield Queued(name, team, service_class, tokens)

    def stored(self) -> Stored:
        """The size of the store."""
        return Stored(self._store.memory_bytes, self._store.table_bytes, self._store.blocks)
