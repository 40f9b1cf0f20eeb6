"""Prometheus's configuration, the alerts and the dashboard against the metrics the server has."""

from __future__ import annotations

import json
import re
from typing import Any, get_args

import pytest
import yaml

from composed import DOCKER, load
from measured import everything, samples
from tokenpriority.schema import ServiceClass
from tokenpriority_service.scheduling.refusals import REFUSALS

DASHBOARD = json.loads((DOCKER / "grafana/dashboards/tokenpriority.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [(target["expr"], target["legendFormat"]) for panel in PANELS for target in panel["targets"]]
RULES = [rule for group in load("prometheus/alerts.yml")["groups"] for rule in group["rules"]]
EXPRESSIONS = [expression for expression, _ in TARGETS] + [rule["expr"] for rule in RULES]

FUNCTIONS = {"rate", "increase", "sum", "min", "max", "count", "histogram_quantile", "absent", "by", "or"}
OF_PROMETHEUS = {"instance", "job"}
SELECTED = re.compile(r"([a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'([a-z_]+)(=~|!=|=)"([^"]*)"')

LABELS: dict[str, set[str]] = {}
VALUES: dict[str, set[str]] = {
    "reason": {refusal.reason for refusal in REFUSALS},
    "service_class": set(get_args(ServiceClass)),
    "status": {"500"},
    "job": {job["job_name"] for job in load("prometheus/prometheus.yml")["scrape_configs"]},
}
for _name, _labels in samples(everything()):
    LABELS.setdefault(_name, set()).update(key for key, _ in _labels)
    for _key, _value in _labels:
        if _key in ("source", "tier", "result", "route"):
            VALUES.setdefault(_key, set()).add(_value)
_PROCESS = re.findall(r"^(process_\w+) ", everything().render().decode(), re.MULTILINE)
LABELS |= {name: set() for name in ["up", *_PROCESS]}


def metrics_of(expression: str) -> list[tuple[str, str]]:
    """(name, selector) of each metric in a PromQL expression."""
    bare = re.sub(r"\[[^]]*\]|by \([^)]*\)", "", expression)
    return [(name, selector) for name, selector in SELECTED.findall(bare) if name not in FUNCTIONS]


def grouped(expression: str) -> set[str]:
    return {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_asks_for_what_the_server_has(expression: str) -> None:
    for opened, closed in ("()", "[]", "{}"):
        assert expression.count(opened) == expression.count(closed)
    found = metrics_of(expression)
    assert found
    for name, selector in found:
        assert name in LABELS, name
        for label, how, value in MATCHER.findall(selector):
            assert label in LABELS[name] | OF_PROMETHEUS, f"{name}: {label}"
            if how != "=~":
                assert value in VALUES[label], f"{label}={value}"
    for label in grouped(expression):
        assert all(label in LABELS[name] | OF_PROMETHEUS for name, _ in found), label
    if "histogram_quantile" in expression:
        assert "le" in grouped(expression)
        assert all(name.endswith("_bucket") for name, _ in found)


def test_the_check_sees_what_is_wrong() -> None:
    good = 'sum by (team) (rate(tokenpriority_tokens_total{source="store"}[5m]))'
    test_an_expression_asks_for_what_the_server_has(good)
    for old, new in (("tokens_total", "token_total"), ("source", "sauce"), ("store", "cache"), ("(team)", "(teem)")):
        with pytest.raises((AssertionError, KeyError)):
            test_an_expression_asks_for_what_the_server_has(good.replace(old, new))


def test_every_metric_is_shown() -> None:
    used = {name for expression, _ in TARGETS for name, _ in metrics_of(expression)}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in used}
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in LABELS if name.startswith("tokenpriority")} <= bare


def test_legends_name_labels_of_the_result() -> None:
    for expression, legend in TARGETS:
        assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= grouped(expression) | OF_PROMETHEUS


def test_variables_are_defined_and_used() -> None:
    given = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = {name for expression, _ in TARGETS for name in re.findall(r"\$(\w+)", expression)}
    assert used == set(given) | {"__rate_interval"}
    for name, variable in given.items():
        match = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["query"]["query"])
        assert match is not None
        assert match[2] == name
        assert name in LABELS[match[1]] | OF_PROMETHEUS


def test_panels_fit_the_grid_and_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, panel["title"]
        places |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    titles = [panel["title"] for panel in PANELS]
    assert all(titles)


def test_the_dashboard_is_provisioned_with_its_data_source() -> None:
    [source] = load("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    uids = {panel["datasource"]["uid"] for panel in PANELS}
    uids |= {target["datasource"]["uid"] for panel in PANELS for target in panel["targets"]}
    uids |= {variable["datasource"]["uid"] for variable in DASHBOARD["templating"]["list"]}
    assert uids == {source["uid"]}
    compose = load("compose.yaml")["services"]
    assert source["url"] == f"http://prometheus:{compose['prometheus']['ports'][0].split(':')[-1]}"
    interval = load("prometheus/prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    [provider] = load("grafana/provisioning/dashboards/tokenpriority.yml")["providers"]
    targets = dict(volume.split(":")[:2] for volume in compose["grafana"]["volumes"])
    assert targets["./grafana/dashboards"] == provider["options"]["path"]
    assert targets["./grafana/provisioning"] == "/etc/grafana/provisioning"
    home = compose["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/tokenpriority.json"


def test_prometheus_reads_every_replica_with_its_key() -> None:
    config: Any = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    compose = load("compose.yaml")
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "tokenpriority"]
    [discovery] = job["dns_sd_configs"]
    assert set(discovery["names"]) <= set(compose["services"])
    assert discovery["port"] == 8000
    [secret] = compose["services"]["prometheus"]["secrets"]
    assert job["authorization"] == {"type": "Bearer", "credentials_file": f"/run/secrets/{secret}"}
    assert all((DOCKER / "prometheus" / name).is_file() for name in config["rule_files"])
    targets = dict(volume.split(":")[:2] for volume in compose["services"]["prometheus"]["volumes"])
    arguments = dict(word.split("=", 1) for word in compose["services"]["prometheus"]["command"])
    assert arguments["--config.file"] == f"{targets['./prometheus']}/prometheus.yml"
    assert arguments["--storage.tsdb.path"] == targets["prometheus"]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_whom_it_concerns(rule: dict[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description"}
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    kept = grouped(rule["expr"]) or OF_PROMETHEUS.union(*(LABELS[name] for name, _ in metrics_of(rule["expr"])))
    assert named <= kept
    assert re.fullmatch(r"\d+m", rule.get("for", "1m"))
