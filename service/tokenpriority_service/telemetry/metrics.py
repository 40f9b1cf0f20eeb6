"""What a server measures of itself, in Prometheus' text format.

Knows the names, labels and buckets of every metric, and counts what it is told. What has a size at every moment (the
queue, the store) is read when the metrics are, through `Sources`. Knows nothing of HTTP and keeps no token content.
Every label comes from a bounded set: routes are templates, teams those of keys, models the server's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Literal, NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

PREFIX = "tokenpriority_"
Reason = Literal["tokens_per_minute", "concurrent_tokens", "share", "server_full"]
"""Why a request was refused: a quota of its team, its team's share of the queue, the whole queue."""

OPERATIONS = ("find", "keep")
"""What a store can fail at: its methods. Counted from 0 on, so that a rate sees the first failure."""

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Buckets of durations: from an answer out of memory to the client's timeout."""
TOKENS = tuple(4**power for power in range(2, 10))
"""Buckets of the tokens of one call: 16 to 262,144, the most of one request."""
SEQUENCES = tuple(4**power for power in range(6))
"""Buckets of the sequences of one call: 1 to 1024, the most of one request."""
UNMATCHED = "unmatched"
"""Route of requests that no route matched: what was asked for may hold anything."""


class Queued(NamedTuple):
    """What one team has waiting for one model in one class."""

    model: str
    team: str
    service_class: str
    tokens: int


class Stored(NamedTuple):
    """How much evidence is kept: bytes in this process, bytes and blocks in the database."""

    memory_bytes: int
    table_bytes: int
    blocks: int


class Sources(Protocol):
    """What is read at the moment the metrics are. Nothing here may wait."""

    @property
    def in_progress(self) -> int:
        """Requests being answered."""

    @property
    def draining(self) -> bool:
        """Whether the server is stopping."""

    def ready(self) -> Mapping[str, bool]:
        """Every model by name, and whether it can score now."""

    def queued(self) -> Iterable[Queued]:
        """What waits; a flow that is absent has nothing waiting."""

    def stored(self) -> Stored:
        """The size of the store."""


class Metrics:
    """The measurements of one server, in a registry of their own.

    Every method but `render` takes microseconds and is safe in any thread.
    """

    media_type = "text/plain; version=0.0.4; charset=utf-8"
    """Of what `render` gives."""

    def __init__(self) -> None:
        registry = self._registry = _Registry()

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, what, labels, registry=registry)

        def histogram(name: str, what: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(PREFIX + name, what, labels, registry=registry, buckets=list(buckets))

        self._tokens = counter(
            "tokens", "Tokens of answered sequences, by where their evidence came from", "team", "model", "source"
        )
        self._requests = counter("requests", "Answers", "route", "status")
        self._request_seconds = histogram(
            "request_seconds", "From the arrival of a request to the end of its answer", SECONDS, "route"
        )
        self._queue_seconds = histogram(
            "queue_seconds", "What work waited until an engine began with it", SECONDS, "model", "service_class"
        )
        self._engine_seconds = histogram("engine_seconds", "One call of an engine", SECONDS, "model")
        self._engine_tokens = counter("engine_tokens", "Tokens that engines were given", "model")
        self._batch_tokens = histogram("batch_tokens", "Tokens of one call of an engine", TOKENS, "model")
        self._batch_sequences = histogram("batch_sequences", "Sequences of one call of an engine", SEQUENCES, "model")
        self._rejections = counter("rejections", "Requests refused for want of room or quota", "team", "reason")
        lookups = counter("store_lookups", "Blocks of evidence that were looked for in the store", "result")
        self._hits, self._misses = lookups.labels("hit"), lookups.labels("miss")
        self._store_failures = counter("store_failures", "Operations of the store that failed", "operation")
        for operation in OPERATIONS:
            self._store_failures.labels(operation)
        build = Info(PREFIX + "build", "The version that runs", registry=registry)
        build.info({"version": version("tokenpriority")})
        ProcessCollector(registry=registry)

    def observe(self, sources: Sources) -> None:
        """Read `sources` too, each time the metrics are read. Raises ValueError the second time."""
        self._registry.register(_Gauges(sources))

    def scored(self, team: str, model: str, tokens: int, cached_tokens: int) -> None:
        """Sequences of this many tokens were answered, of which so many came from the store."""
        self._tokens.labels(team, model, "engine").inc(tokens - cached_tokens)
        self._tokens.labels(team, model, "store").inc(cached_tokens)

    def answered(self, route: str | None, status: int, seconds: float) -> None:
        """A request was answered. `route` is the template of the route that took it, None if none did."""
        self._requests.labels(route or UNMATCHED, status).inc()
        self._request_seconds.labels(route or UNMATCHED).observe(seconds)

    def rejected(self, team: str, reason: Reason) -> None:
        """A request of this team was refused with 429, or with 503 since the server was full."""
        self._rejections.labels(team, reason).inc()

    def waited(self, model: str, service_class: str, seconds: float) -> None:
        """An engine began with work that had waited so long."""
        self._queue_seconds.labels(model, service_class).observe(seconds)

    def called(self, model: str, tokens: int, sequences: int, seconds: float) -> None:
        """A call of an engine ended."""
        self._engine_seconds.labels(model).observe(seconds)
        self._engine_tokens.labels(model).inc(tokens)
        self._batch_tokens.labels(model).observe(tokens)
        self._batch_sequences.labels(model).observe(sequences)

    def stored(self, hits_blocks: int, missed_blocks: int) -> None:
        """The store was asked for blocks: so many it had, so many it had not."""
        self._hits.inc(hits_blocks)
        self._misses.inc(missed_blocks)

    def store_failed(self, what: str) -> None:
        """An operation of the store failed; `what` is its name in the code."""
        self._store_failures.labels(what).inc()

    def render(self) -> bytes:
        """Everything, as GET /metrics answers it; milliseconds."""
        return generate_latest(self._registry)


class _Registry(CollectorRegistry):
    """Without the time at which each series began: it doubles what is sent, and Prometheus does not use it here."""

    def collect(self) -> Iterator[Metric]:
        for metric in super().collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class _Gauges(Collector):
    """What `Sources` says, as metrics."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Their names, without asking the sources."""
        for name, (what, labels) in _GAUGES.items():
            yield GaugeMetricFamily(PREFIX + name, what, labels=labels)

    def collect(self) -> Iterator[Metric]:
        """Their values now."""
        sources, stored = self._sources, self._sources.stored()
        # Flows of equal labels (a model by two queues, say) are one series.
        waiting: dict[tuple[str, ...], int] = {}
        for each in sources.queued():
            key = each.model, each.team, each.service_class
            waiting[key] = waiting.get(key, 0) + each.tokens
        values: dict[str, Mapping[tuple[str, ...], float]] = {
            "requests_in_progress": {(): sources.in_progress},
            "draining": {(): sources.draining},
            "model_ready": {(name,): ready for name, ready in sources.ready().items()},
            "queue_tokens": waiting,
            "store_bytes": {("memory",): stored.memory_bytes, ("table",): stored.table_bytes},
            "store_blocks": {(): stored.blocks},
        }
        for family in self.describe():
            for labels, value in values[family.name.removeprefix(PREFIX)].items():
                family.add_metric(labels, value)
            yield family


_GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "requests_in_progress": ("Requests being answered", ()),
    "draining": ("Whether the server is stopping", ()),
    "model_ready": ("Whether a model can score", ("model",)),
    "queue_tokens": ("Tokens waiting for an engine", ("model", "team", "service_class")),
    "store_bytes": ("Bytes of evidence kept, in this process and in the database", ("tier",)),
    "store_blocks": ("Blocks of evidence kept in the database", ()),
}
