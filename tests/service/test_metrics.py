"""What GET /metrics says, as Prometheus reads it."""

from __future__ import annotations

import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from measured import Samples, Server, everything, samples
from tokenpriority_service.scheduling.refusals import REFUSALS
from tokenpriority_service.telemetry.metrics import SECONDS, SEQUENCES, TOKENS, Metrics, Queued, Stored

SERIES = {
    "tokenpriority_tokens_total": {"team", "model", "source"},
    "tokenpriority_requests_total": {"route", "status"},
    "tokenpriority_request_seconds": {"route"},
    "tokenpriority_queue_seconds": {"model", "service_class"},
    "tokenpriority_engine_seconds": {"model"},
    "tokenpriority_engine_tokens_total": {"model"},
    "tokenpriority_batch_tokens": {"model"},
    "tokenpriority_batch_sequences": {"model"},
    "tokenpriority_rejections_total": {"team", "reason"},
    "tokenpriority_store_lookups_total": {"result"},
    "tokenpriority_store_failures_total": {"operation"},
    "tokenpriority_requests_in_progress": set(),
    "tokenpriority_draining": set(),
    "tokenpriority_model_ready": {"model"},
    "tokenpriority_queue_tokens": {"model", "team", "service_class"},
    "tokenpriority_store_bytes": {"tier"},
    "tokenpriority_store_blocks": set(),
    "tokenpriority_build_info": {"version"},
}
"""What dashboards are built on: a name or label that changes breaks them."""


def value(found: Samples, series: str, **labels: str) -> float | None:
    return found.get((f"tokenpriority_{series}", frozenset(labels.items())))


def bare(name: str) -> str:
    for suffix in ("_bucket", "_sum", "_count"):
        name = name.removesuffix(suffix)
    return name


def test_names_and_labels_are_those_that_dashboards_know() -> None:
    found: dict[str, set[str]] = {}
    for name, labels in samples(everything()):
        found.setdefault(bare(name), set()).update(key for key, _ in labels if key != "le")
    assert found == SERIES


def test_every_series_says_what_it_is() -> None:
    for family in text_string_to_metric_families(everything().render().decode()):
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")


def test_tokens_are_split_by_where_their_evidence_came_from() -> None:
    metrics = Metrics()
    metrics.scored("alpha", "reference", 100, 40)
    metrics.scored("alpha", "reference", 11, 11)
    metrics.scored("beta", "base", 5, 0)
    found = samples(metrics)
    assert value(found, "tokens_total", team="alpha", model="reference", source="engine") == 60
    assert value(found, "tokens_total", team="alpha", model="reference", source="store") == 51
    assert value(found, "tokens_total", team="beta", model="base", source="engine") == 5


def test_an_answer_is_counted_by_route_and_status() -> None:
    metrics = Metrics()
    for status, seconds in ((200, 0.004), (200, 0.2), (503, 130.0)):
        metrics.answered("/v1/priorities", status, seconds)
    metrics.answered(None, 404, 0.001)
    found = samples(metrics)
    assert value(found, "requests_total", route="/v1/priorities", status="200") == 2
    assert value(found, "requests_total", route="/v1/priorities", status="503") == 1
    assert value(found, "requests_total", route="unmatched", status="404") == 1
    assert value(found, "request_seconds_sum", route="/v1/priorities") == pytest.approx(130.204)
    for edge, count in (("0.0025", 0), ("0.005", 1), ("0.25", 2), ("120.0", 2), ("+Inf", 3)):
        assert value(found, "request_seconds_bucket", route="/v1/priorities", le=edge) == count
    # A bucket holds its edge.
    assert value(found, "request_seconds_bucket", route="unmatched", le="0.001") == 1


def test_waits_and_calls_are_measured_by_model() -> None:
    metrics = Metrics()
    metrics.waited("reference", "bulk", 3.0)
    metrics.waited("reference", "interactive", 0.002)
    metrics.called("reference", 65_536, 64, 0.75)
    metrics.called("reference", 10, 1, 0.25)
    found = samples(metrics)
    assert value(found, "queue_seconds_sum", model="reference", service_class="bulk") == 3.0
    assert value(found, "queue_seconds_count", model="reference", service_class="interactive") == 1
    assert value(found, "engine_seconds_sum", model="reference") == 1.0
    assert value(found, "engine_tokens_total", model="reference") == 65_546
    assert value(found, "batch_tokens_bucket", model="reference", le="16.0") == 1
    assert value(found, "batch_tokens_bucket", model="reference", le="65536.0") == 2
    assert value(found, "batch_sequences_bucket", model="reference", le="1.0") == 1
    assert value(found, "batch_sequences_bucket", model="reference", le="64.0") == 2


def test_rejections_by_reason() -> None:
    metrics = Metrics()
    for refusal in REFUSALS:
        metrics.rejected("alpha", refusal.reason)
    metrics.rejected("alpha", "share")
    found = samples(metrics)
    reasons = {dict(key)["reason"]: count for (name, key), count in found.items() if name.endswith("rejections_total")}
    assert reasons == {"tokens_per_minute": 1, "concurrent_tokens": 1, "share": 2, "server_full": 1}


def test_the_store_is_counted_from_nothing() -> None:
    metrics = Metrics()
    # Present before the first use, so that a rate sees the first.
    assert value(samples(metrics), "store_lookups_total", result="hit") == 0
    assert value(samples(metrics), "store_lookups_total", result="miss") == 0
    assert value(samples(metrics), "store_failures_total", operation="find") == 0
    assert value(samples(metrics), "store_failures_total", operation="keep") == 0
    metrics.stored(5, 2)
    metrics.stored(0, 1)
    metrics.store_failed("keep")
    found = samples(metrics)
    assert value(found, "store_lookups_total", result="hit") == 5
    assert value(found, "store_lookups_total", result="miss") == 3
    assert value(found, "store_failures_total", operation="keep") == 1


def test_sources_are_read_each_time() -> None:
    metrics, server = Metrics(), Server()
    metrics.observe(server)
    found = samples(metrics)
    assert value(found, "requests_in_progress") == 3
    assert value(found, "draining") == 0
    assert value(found, "model_ready", model="reference") == 1
    assert value(found, "model_ready", model="base") == 0
    assert value(found, "queue_tokens", model="reference", team="alpha", service_class="bulk") == 700
    assert value(found, "store_bytes", tier="memory") == 1000
    assert value(found, "store_bytes", tier="table") == 5000
    assert value(found, "store_blocks") == 7
    server.in_progress, server.draining, server.models, server.kept = 0, True, {"base": True}, Stored(0, 0, 0)
    server.queue = [Queued("base", "-", "interactive", 2), Queued("base", "-", "interactive", 5)]
    found = samples(metrics)
    assert value(found, "requests_in_progress") == 0
    assert value(found, "draining") == 1
    assert value(found, "model_ready", model="base") == 1
    assert value(found, "model_ready", model="reference") is None
    assert value(found, "queue_tokens", model="base", team="-", service_class="interactive") == 7
    assert value(found, "queue_tokens", model="reference", team="alpha", service_class="bulk") is None
    with pytest.raises(ValueError, match="queue_tokens"):
        metrics.observe(server)


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.store_failed("find")
    assert value(samples(first), "store_failures_total", operation="find") == 1
    assert value(samples(second), "store_failures_total", operation="find") == 0


def test_threads_lose_no_count() -> None:
    metrics = Metrics()

    def work() -> None:
        for _ in range(500):
            metrics.called("reference", 3, 1, 0.25)
            metrics.scored("alpha", "reference", 3, 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = samples(metrics)
    assert value(found, "engine_tokens_total", model="reference") == 12_000
    assert value(found, "engine_seconds_sum", model="reference") == 1000
    assert value(found, "tokens_total", team="alpha", model="reference", source="store") == 4000


def test_a_name_of_any_characters_is_one_label() -> None:
    metrics = Metrics()
    name = 'a "quoted"\\\nname\u2028é'
    metrics.scored(name, name, 2, 1)
    assert value(samples(metrics), "tokens_total", team=name, model=name, source="store") == 1


def test_buckets_rise() -> None:
    for buckets in (SECONDS, TOKENS, SEQUENCES):
        assert sorted(set(buckets)) == list(buckets)
    assert (SECONDS[0], SECONDS[-1]) == (0.001, 120.0)
    assert (TOKENS[0], TOKENS[-1], SEQUENCES[-1]) == (16, 262_144, 1024)
