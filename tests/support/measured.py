"""Metrics with every metric used once, and what Prometheus reads of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from tokenpriority_service.telemetry.metrics import Metrics, Queued, Stored

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass
class Server:
    """`metrics.Sources` to be changed at will."""

    in_progress: int = 3
    draining: bool = False
    models: dict[str, bool] = field(default_factory=lambda: {"reference": True, "base": False})
    queue: list[Queued] = field(default_factory=lambda: [Queued("reference", "alpha", "bulk", 700)])
    kept: Stored = field(default_factory=lambda: Stored(1000, 5000, 7))

    def ready(self) -> Mapping[str, bool]:
        return self.models

    def queued(self) -> Iterable[Queued]:
        return self.queue

    def stored(self) -> Stored:
        return self.kept


def everything() -> Metrics:
    """Every metric of a server, each with at least one series."""
    metrics = Metrics()
    metrics.observe(Server())
    metrics.scored("alpha", "reference", 100, 40)
    metrics.answered("/v1/priorities", 200, 0.25)
    metrics.rejected("alpha", "share")
    metrics.waited("reference", "bulk", 0.004)
    metrics.called("reference", 4096, 4, 0.5)
    metrics.stored(3, 2)
    metrics.store_failed("find")
    return metrics


def samples(metrics: Metrics) -> Samples:
    """(name, labels) -> value of every series, process metrics aside."""
    families = text_string_to_metric_families(metrics.render().decode())
    found = [sample for family in families for sample in family.samples]
    return {
        (each.name, frozenset(each.labels.items())): each.value
        for each in found
        if not each.name.startswith("process_")
    }
