"""The dashboard: what is committed is what the tables make, and it asks for metrics that there are."""

from __future__ import annotations

import json
import re

import pytest

from serving.observing.metrics import SPECS
from tests.deploy.files import DEPLOY, documents

DASHBOARD = DEPLOY / "grafana/dashboard.json"


def panels() -> list[dict]:
    return json.loads(DASHBOARD.read_text())["panels"]


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel.get("targets", ())]


def test_it_is_what_the_tables_make():
    space: dict = {"__name__": "make_dashboard", "__file__": str(DEPLOY / "grafana/make_dashboard.py")}
    exec((DEPLOY / "grafana/make_dashboard.py").read_text(), space)
    assert DASHBOARD.read_text() == space["text"](), "run python deploy/grafana/make_dashboard.py"


def test_panels_lie_side_by_side():
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())


def expressions() -> dict[str, str]:
    found = {f"dashboard: {query[:60]}": query for query in queries()}
    for group in documents(DEPLOY / "prometheus/alerts.yml")[0]["groups"]:
        found |= {rule["alert"]: rule["expr"] for rule in group["rules"]}
    return found


@pytest.mark.parametrize("name", expressions())
def test_names_and_labels_are_those_of_the_metrics(name):
    specs = {spec.name: spec for spec in SPECS}
    used = re.findall(r"jaxinfer:(\w+)(?:\{([^}]*)\})?", expressions()[name])
    for metric, selector in used:
        base = re.sub(r"_(bucket|sum|count)$", "", metric) if metric not in specs else metric
        assert base in specs, metric
        if base != metric:
            assert specs[base].kind == "histogram"
        allowed = {"model_name", "engine", "instance", "job", "le", *specs[base].labels}
        assert set(re.findall(r"(\w+)\s*=~?", selector)) <= allowed, metric
        ranged = re.search(re.escape(metric) + r"(?:\{[^}]*\})?\[", expressions()[name])
        if specs[base].kind == "gauge" and ranged:
            assert "min_over_time" in expressions()[name], f"{metric} is a gauge"
        if specs[base].kind != "gauge" and not ranged:
            assert "compilations_after_ready_total" in metric, f"{metric} only grows"
    assert used or "up{" in expressions()[name] or "process_" in expressions()[name]
