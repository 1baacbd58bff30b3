"""The dashboard and the alert rules ask for what the service shows, and the tools that read them can."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics
from tests.deploy.test_deploy import COMPOSE, DEPLOY, ROOT, TARGETS, check_specification, merged

DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana/ttvideo.json").read_text())
RULES: list[dict[str, Any]] = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCRAPED = {"job", "instance"}
"""Labels that Prometheus adds."""


def series() -> dict[str, set[str]]:
    """Every series that the service shows, and its labels. `up` is Prometheus' own."""
    metrics = Metrics()
    found: dict[str, set[str]] = {"up": set()}
    for collector in vars(metrics).values():
        if isinstance(collector, CollectorRegistry):
            continue
        assert isinstance(collector, MetricWrapperBase)
        labels = set(collector._labelnames)
        (family,) = collector.describe()
        suffixes = {"counter": ["_total"], "histogram": ["_count", "_sum"], "info": ["_info"]}
        for suffix in suffixes.get(family.type, [""]):
            found[family.name + suffix] = labels
        if family.type == "histogram":
            found[family.name + "_bucket"] = labels | {"le"}
        if family.type == "info":
            found[family.name + "_info"] |= {"version"}
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):
            found |= {sample.name: set(sample.labels) for sample in family.samples}
    return found


SERIES = series()


def queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"panel {panel['title']}", target["expr"].replace("$__rate_interval", "5m")
    for rule in RULES:
        yield f"rule {rule['alert']}", rule["expr"]


def expressions(query: str) -> Iterator[Any]:
    """The query's parts, itself first."""
    waiting = [promql_parser.parse(query)]
    while waiting:
        part = waiting.pop()
        yield part
        for name in ("lhs", "rhs", "expr", "vector_selector", "vs"):
            inner = getattr(part, name, None)
            if isinstance(inner, promql_parser.Expr):
                waiting.append(inner)
        waiting += getattr(part, "args", [])


def selectors(query: str) -> list[Any]:
    return [part for part in expressions(query) if isinstance(part, promql_parser.VectorSelector)]


@pytest.mark.parametrize(("place", "query"), list(queries()), ids=[place for place, _ in queries()])
def test_every_query_asks_for_what_there_is(place: str, query: str) -> None:
    asked = selectors(query)
    assert len(asked) == len(re.findall(r"\b(?:ttvideo_|process_|up\b)", query)), "the walk saw every selector"
    there: set[str] = set(SCRAPED)
    for selector in asked:
        assert selector.name in SERIES
        there |= SERIES[selector.name]
        named = {matcher.name for matcher in selector.matchers.matchers}
        assert named <= SERIES[selector.name] | SCRAPED, f"{selector.name} has {SERIES[selector.name]}"
    for part in expressions(query):
        grouped = getattr(getattr(part, "modifier", None), "labels", None)
        if isinstance(part, promql_parser.AggregateExpr) and grouped is not None:
            assert set(grouped) <= there


def test_the_test_sees_a_wrong_name_and_a_wrong_label() -> None:
    (selector,) = selectors('sum by (code) (rate(ttvideo_requests_total{code!="ok"}[5m]))')
    assert selector.name == "ttvideo_requests_total"
    assert [matcher.name for matcher in selector.matchers.matchers] == ["code"]
    assert SERIES["ttvideo_requests_total"] == {"route", "status", "code"}
    assert SERIES["ttvideo_stage_seconds_bucket"] == {"stage", "le"}
    assert "ttvideo_requests" not in SERIES


def test_legends_and_annotations_name_labels_that_there_are() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            labels = set().union(*(SERIES[s.name] for s in selectors(target["expr"].replace("$__rate_interval", "5m"))))
            assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= labels | SCRAPED
    for rule in RULES:
        labels = set().union(*(SERIES[selector.name] for selector in selectors(rule["expr"])))
        said = " ".join(rule["annotations"].values())
        assert set(re.findall(r"\$labels\.(\w+)", said)) <= labels | SCRAPED, rule["alert"]


def test_metrics_py_alone_makes_series() -> None:
    makers = set()
    for path in (ROOT / "service").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prometheus_client"):
                taken = {alias.name for alias in node.names} - {"CONTENT_TYPE_PLAIN_0_0_4"}
                makers |= {str(path.relative_to(ROOT))} if taken else set()
            elif isinstance(node, ast.Import) and any(a.name.startswith("prometheus_client") for a in node.names):
                makers.add(str(path.relative_to(ROOT)))
    assert makers == {"service/metrics.py"}


def test_the_dashboard_is_whole() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    (asked,) = re.findall(r"label_values\((\w+), instance\)", variables["instance"]["definition"])
    assert asked in SERIES
    places = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & places, f"{panel['title']} lies over another"
        places |= cells
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            for selector in selectors(target["expr"].replace("$__rate_interval", "5m")):
                assert [m.value for m in selector.matchers.matchers if m.name == "instance"] == ["$instance"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_each_rule_says_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names))
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")])
def test_prometheus_takes_them(arguments: tuple[str, ...]) -> None:
    folder = DEPLOY / "prometheus"
    done = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_rule_has_its_test() -> None:
    tested = (DEPLOY / "prometheus/alerts_test.yml").read_text()
    for rule in RULES:
        assert f'alertname="{rule["alert"]}"' in tested


MONITORED = {target: (*COMPOSE[target], "docker-compose.monitoring.yml") for target in TARGETS}


@pytest.mark.parametrize("target", TARGETS)
def test_compose_files_follow_the_specification(target: str, tmp_path: Path) -> None:
    check_specification(MONITORED[target], tmp_path)


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_watches_is_locked_down_too(name: str) -> None:
    watcher = merged(*MONITORED["cpu"])["services"][name]
    assert watcher["image"].rpartition(":")[2] not in ("", "latest")
    assert all(port.startswith("127.0.0.1:") for port in watcher["ports"])
    assert watcher["read_only"] is True
    assert watcher["cap_drop"] == ["ALL"]
    assert watcher["security_opt"] == ["no-new-privileges:true"]
    assert watcher["user"].split(":")[0] != "0"
    assert watcher["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    for volume in watcher["volumes"]:
        source, _, rest = volume.partition(":")
        if source.startswith("./"):
            assert rest.endswith(":ro")
            assert (DEPLOY / source).exists()


def test_prometheus_reads_the_service_and_grafana_reads_prometheus() -> None:
    services = merged(*MONITORED["cpu"])["services"]
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    (scrape,) = config["scrape_configs"]
    (target,) = scrape["static_configs"][0]["targets"]
    host, port = target.split(":")
    assert services[host]["ports"][0].endswith(f":{port}")
    assert services[host]["environment"]["TTVIDEO_OPEN_METRICS"] == "true"
    assert scrape.get("metrics_path", "/metrics") == "/metrics"
    (source,) = yaml.safe_load((DEPLOY / "grafana/datasources.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    (provider,) = yaml.safe_load((DEPLOY / "grafana/dashboards.yml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/ttvideo.json" in mounted
