"""The dashboard can be imported, and every query asks for series that uvd or Ray exports."""

from __future__ import annotations

import importlib
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from uvd.pipeline import metrics

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "cluster" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
_NAME = re.compile(r"\b((?:ray|autoscaler)_[a-z0-9_]+)\b")


def names_of_ours() -> dict[str, set[str]]:
    """Metrics that `pipeline.metrics` creates, and their tags."""
    made: dict[str, set[str]] = {}

    def note(name: str, _about: str, *rest: Any) -> mock.Mock:
        made[name] = set(rest[-1])
        return mock.Mock()

    with mock.patch.multiple(metrics, Counter=note, Gauge=note, Histogram=note):
        metrics.RunMetrics("ingest", "photos")
        metrics.DeviceMetrics("cpu", lambda: 0.0).close()
    return made


def names_of_rays() -> set[str]:
    """Metrics that Ray's own dashboards ask for; node metrics from the list of what its agent exports."""
    found: set[str] = set()
    for module in ("default_dashboard_panels", "data_dashboard_panels"):
        path = importlib.import_module(f"ray.dashboard.modules.metrics.dashboards.{module}").__file__
        assert path
        found |= set(_NAME.findall(Path(path).read_text()))
    agent = importlib.import_module("ray.dashboard.modules.reporter.reporter_agent")
    return found | {f"ray_{name}" for name in agent.METRICS_GAUGES}


def exported(name: str) -> str:
    """What Prometheus sees as one metric: a histogram's three series are one."""
    return re.sub(r"_(bucket|sum|count)$", "", name) if name.startswith("ray_uvd_shard_seconds") else name


def test_every_query_asks_for_metrics_that_exist():
    ours = {f"ray_{name}" for name in names_of_ours()}
    rays = names_of_rays()
    assert len(ours) > 10
    assert len(rays) > 40
    for expression in EXPRESSIONS:
        asked = {exported(name) for name in _NAME.findall(expression)}
        assert asked, expression
        assert asked <= ours | rays, f"{expression}: {asked - ours - rays} are exported by nobody"


def test_all_that_we_count_is_shown():
    asked = {exported(name) for expression in EXPRESSIONS for name in _NAME.findall(expression)}
    assert {f"ray_{name}" for name in names_of_ours()} <= asked


def test_the_documentation_names_every_metric():
    text = (ROOT / "docs" / "cluster.md").read_text()
    assert all(f"`ray_{name}`" in text for name in names_of_ours())


def test_queries_filter_and_group_by_labels_that_our_metrics_have():
    ours = names_of_ours()
    rays = {"NodeAddress", "instance", "le"}  # that Ray and Prometheus add
    for expression in EXPRESSIONS:
        if "ray_uvd_" not in expression:
            continue
        filtered = set(re.findall(r"(\w+)=~?\"", expression))
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", expression) for label in group.split(",")}
        for name in set(re.findall(r"ray_(uvd_\w+)", expression)):
            tags = ours[exported(f"ray_{name}").removeprefix("ray_")]
            assert grouped - rays <= tags, expression
            if len(set(re.findall(r"ray_(uvd_\w+)", expression))) == 1:
                assert filtered <= tags, expression


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_queries_are_whole(expression):
    for opening, closing in ("()", "{}", "[]"):
        assert expression.count(opening) == expression.count(closing)
    if name := re.search(r"ray_uvd_\w+_total", expression):
        # A counter is looked at through a rate, or as a whole where a panel says so.
        assert re.search(r"rate\(|increase\(|sum\(", expression), name[0]
    variables = set(re.findall(r"\$(\w+)", expression))
    assert variables <= {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}


def test_the_file_is_a_dashboard_that_grafana_10_imports():
    assert DASHBOARD["schemaVersion"] <= 39  # Grafana 10.3's; later versions migrate it
    assert DASHBOARD["uid"] == "uvd"
    assert "id" not in DASHBOARD  # an id would name a dashboard of another Grafana
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    datasource = {"type": "prometheus", "uid": "${datasource}"}
    assert {panel["type"] for panel in PANELS} == {"stat", "timeseries"}
    for panel in PANELS:
        assert panel["datasource"] == datasource
        assert panel["title"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0
        assert all(target["datasource"] == datasource for target in panel["targets"])
    kinds = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "stage": "query", "source": "query", "instance": "query"}


def test_panels_do_not_overlap():
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
