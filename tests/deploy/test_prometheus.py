"""The scrape configuration and the alerts, judged by promtool; the dashboard's queries, answered by a real Prometheus
that scrapes a server with the demo model."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.files import DEPLOY, ROOT, documents, free_port, paths_of_the_server, program
from tests.deploy.test_grafana import queries
from tests.serving.http.demo_server import demo_server

pytestmark = pytest.mark.timeout(400)  # the demo compiles its steps first

FOLDER = DEPLOY / "prometheus"
SCRAPE_SECONDS = 1
LOAD_SECONDS = 12.0
SMALL = ("--max-num-seqs=2", "--max-num-batched-tokens=8", "--max-model-len=256")  # compiles the sooner


def promtool(*words: str) -> str:
    done = subprocess.run([program("promtool", "prometheus"), *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def rules() -> list[dict[str, Any]]:
    return [rule for group in documents(FOLDER / "alerts.yml")[0]["groups"] for rule in group["rules"]]


def test_promtool_takes_both():
    assert "SUCCESS" in promtool("check", "config", str(FOLDER / "prometheus.yml"))
    assert f"{len(rules())} rules found" in promtool("check", "rules", str(FOLDER / "alerts.yml"))


def test_every_alert_fires_when_it_must_and_not_before(tmp_path):
    text = (Path(__file__).parent / "alerts_test.yml").read_text()
    (tmp_path / "test.yml").write_text(text.replace("RULES", str(FOLDER / "alerts.yml")))
    promtool("test", "rules", str(tmp_path / "test.yml"))
    fired = {
        each["alertname"]
        for test in yaml.safe_load(text)["tests"]
        for each in test["alert_rule_test"]
        if "exp_alerts" in each
    }
    assert fired == {rule["alert"] for rule in rules()}


def test_every_alert_has_a_place_in_the_docs():
    page = (ROOT / "docs/operations.md").read_text()
    for rule in rules():
        file, anchor = rule["annotations"]["runbook"].split("#")
        assert file == "docs/operations.md"
        assert anchor == rule["alert"].lower()
        assert f"### {rule['alert']}\n" in page
        assert rule["labels"]["severity"] in ("page", "ticket")
    assert re.findall(r"^### (Jaxinfer\w+)$", page, re.M) == [rule["alert"] for rule in rules()]


def test_the_configuration_is_the_servers():
    (config,) = documents(FOLDER / "prometheus.yml")
    (scrape,) = config["scrape_configs"]
    assert scrape["metrics_path"] in paths_of_the_server()
    assert scrape["job_name"] == "jaxinfer"  # alerts and dashboard ask for it


# -- live -------------------------------------------------------------------------------------------------------------


class Prometheus:
    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=20)

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, query: str, seconds: float = 15) -> list[float]:
        """Of all series in the last seconds; no number is left out (NaN)."""
        now = time.time()
        found = self.get("query_range", query=query, start=str(now - seconds), end=str(now), step="1")["result"]
        return [value for series in found for _, text in series["values"] if (value := float(text)) == value]


def until(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def scraped(tmp_path_factory) -> Iterator[tuple[Prometheus, httpx.Client]]:
    """The shipped configuration, with another target and a shorter interval, over a server that had some load."""
    binary = program("prometheus", "prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with demo_server(folder, f"--ledger={folder}/usage.jsonl", *SMALL) as client:
        (config,) = documents(FOLDER / "prometheus.yml")
        config["global"] |= dict.fromkeys(config["global"], f"{SCRAPE_SECONDS}s")
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [str(client.base_url.netloc.decode())]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        (folder / "alerts.yml").write_text((FOLDER / "alerts.yml").read_text())
        url = f"http://127.0.0.1:{free_port()}"
        command = [binary, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        process = subprocess.Popen(
            [*command, f"--web.listen-address={url.removeprefix('http://')}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            prometheus = Prometheus(url)
            until(prometheus.ready, 30, "Prometheus is ready")
            until(lambda: prometheus.values("up") == [1.0] * len(prometheus.values("up")) != [], 20, "it scrapes")
            _load(client)
            yield prometheus, client
        finally:
            process.terminate()
            process.wait(20)


def _load(client: httpx.Client) -> None:
    """Requests that end and requests that are refused, while Prometheus looks."""
    deadline = time.monotonic() + LOAD_SECONDS
    while time.monotonic() < deadline:
        body = {"prompt": "Once upon a time there was a king who " * 12, "max_tokens": 20, "temperature": 0, "n": 2}
        assert client.post("/v1/completions", json=body).status_code == 200
        assert client.post("/v1/completions", json={**body, "temperature": -1}).status_code == 400
        time.sleep(0.2)


@pytest.mark.longer
def test_every_query_of_the_dashboard_returns_data(scraped):
    prometheus, _ = scraped
    missing, positive = [], 0
    for query in queries():
        for name, value in (("$__rate_interval", "5s"), ("$model", ".*"), ("$instance", ".*")):
            query = query.replace(name, value)
        values = prometheus.values(query)
        assert all(value >= 0 for value in values), query
        positive += any(value > 0 for value in values)
        if not values:
            missing.append(query)
    assert missing == []
    assert positive >= len(queries()) - 6  # nothing waits, is stuck, is preempted, starves or compiles here


@pytest.mark.longer
def test_the_dashboards_variables_have_values(scraped):
    prometheus, client = scraped
    dashboard = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            metric, label = re.fullmatch(r"label_values\((\S+), (\w+)\)", variable["definition"]).groups()
            found = prometheus.get(f"label/{label}/values", **{"match[]": metric})
            assert found == (["demo"] if label == "model_name" else [client.base_url.netloc.decode()])


@pytest.mark.longer
def test_the_alerts_are_evaluated_and_quiet(scraped):
    prometheus, _ = scraped

    def all_rules() -> list[dict[str, Any]]:
        return [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] == "ok" for rule in all_rules()), 20, "every rule was evaluated without an error")
    assert len(all_rules()) == len(rules())
    assert [rule["name"] for rule in all_rules() if rule["state"] == "firing"] == []
    for rule in rules():  # quiet, and not for want of data
        selectors = re.findall(r"(?:jaxinfer:\w+|up|process_start_time_seconds)(?:\{[^}]*\})?", rule["expr"])
        assert selectors
        for selector in selectors:
            if "429" not in selector:  # none was turned away
                assert prometheus.get("query", query=selector)["result"], selector
