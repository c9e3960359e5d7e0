"""Writes dashboard.json beside this file: `python deploy/grafana/make_dashboard.py`. The tables below are the source.

The queries are those of a Prometheus that scrapes the servers themselves, with `--metrics-prefix jaxinfer` or `both`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

PATH = Path(__file__).with_name("dashboard.json")
COLUMNS = 24  # of Grafana's grid
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_CHOSEN = 'model_name=~"$model", instance=~"$instance"'
_PER = "sum by (instance)"


class Panel(NamedTuple):
    """queries: (PromQL, legend). METRIC{} is written short for the dashboard's selection. unit: Grafana's name."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    note: str = ""
    kind: str = "timeseries"
    top: float | None = None


def _rate(metric: str, more: str = "") -> str:
    return f"rate(jaxinfer:{metric}{{{more}}}[$__rate_interval])"


def _quantiles(title: str, metric: str, note: str) -> Panel:
    queries = tuple(
        (f"histogram_quantile({q}, sum by (le) ({_rate(metric + '_bucket')}))", f"p{round(100 * q)}")
        for q in (0.5, 0.9, 0.99)
    )
    return Panel(title, "s", queries, note)


def _share(part: str, whole: str) -> str:
    return f"sum({part}) / sum({whole})"


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    (
        "Now",
        (
            Panel("Replicas up", "none", (('sum(up{job="jaxinfer", instance=~"$instance"})', ""),), kind="stat"),
            Panel("Tokens a second", "none", ((f"sum({_rate('generation_tokens_total')})", ""),), kind="stat"),
            Panel("Running", "none", (("sum(jaxinfer:num_requests_running{})", ""),), "Sequences", "stat"),
            Panel("Waiting", "none", (("sum(jaxinfer:num_requests_waiting{})", ""),), "Sequences", "stat"),
            Panel("Stuck engines", "none", (("sum(jaxinfer:engine_stuck{})", ""),), kind="stat"),
            Panel(
                "Compiled after ready",
                "none",
                (("sum(jaxinfer:compilations_after_ready_total{})", ""),),
                "More than 0 is a fault",
                "stat",
            ),
        ),
    ),
    (
        "Latency",
        (
            _quantiles("Time to the first token", "time_to_first_token_seconds", "From arrival to the first token"),
            _quantiles("Between tokens", "inter_token_latency_seconds", "Between tokens of a sequence"),
            _quantiles("Whole requests", "e2e_request_latency_seconds", "From arrival to the end"),
            _quantiles("Queue", "request_queue_time_seconds", "From submission to the first step"),
        ),
    ),
    (
        "Load",
        (
            Panel(
                "Tokens a second",
                "none",
                (
                    (f"{_PER} ({_rate('generation_tokens_total')})", "{{instance}} generated"),
                    (f"{_PER} ({_rate('prompt_tokens_total')})", "{{instance}} prompt"),
                ),
            ),
            Panel(
                "Sequences",
                "none",
                (
                    ("jaxinfer:num_requests_running{}", "{{instance}} running"),
                    ("jaxinfer:num_requests_waiting{}", "{{instance}} waiting"),
                ),
            ),
            Panel(
                "Requests a second by their end",
                "reqps",
                ((f"sum by (finished_reason) ({_rate('request_success_total')})", "{{finished_reason}}"),),
            ),
            Panel(
                "Refused requests a second",
                "reqps",
                ((f"sum by (door, code) ({_rate('requests_refused_total')})", "{{door}} {{code}}"),),
            ),
            Panel(
                "Tokens of a request, mean",
                "none",
                (
                    (_share(_rate("request_prompt_tokens_sum"), _rate("request_prompt_tokens_count")), "prompt"),
                    (
                        _share(_rate("request_generation_tokens_sum"), _rate("request_generation_tokens_count")),
                        "answer",
                    ),
                ),
            ),
            Panel(
                "Tokens a second by tenant",
                "none",
                ((f"sum by (tenant, kind) ({_rate('tenant_tokens_total')})", "{{tenant}} {{kind}}"),),
                "Counted when a request ends",
            ),
        ),
    ),
    (
        "KV cache",
        (
            Panel("Share in use", "percentunit", (("jaxinfer:kv_cache_usage_perc{}", "{{instance}}"),), top=1),
            Panel("Pages", "none", (("sum by (state) (jaxinfer:kv_pages{})", "{{state}}"),)),
            Panel(
                "Prefix hits",
                "percentunit",
                ((_share(_rate("prefix_cache_hits_total"), _rate("prefix_cache_queries_total")), "share of tokens"),),
                top=1,
            ),
            Panel(
                "Preemptions a second", "none", ((f"{_PER} ({_rate('num_preemptions_total')})", "{{instance}}"),), ""
            ),
        ),
    ),
    (
        "Engine",
        (
            Panel(
                "Share of the engine thread's time",
                "percentunit",
                ((f"avg by (part) ({_rate('step_seconds_total')})", "{{part}}"),),
                "By what it did; the rest is idle. The host's parts cost nothing while the device is busy",
            ),
            Panel(
                "Device without work",
                "percentunit",
                ((f"{_PER} ({_rate('starved_seconds_total')})", "{{instance}}"),),
                "At most: the host's time before steps that came late",
            ),
            Panel(
                "Padding",
                "percentunit",
                (
                    (
                        f"sum({_rate('padded_tokens_total')}) / (sum({_rate('padded_tokens_total')}) "
                        f"+ sum({_rate('scheduled_tokens_total')}))",
                        "share of tokens",
                    ),
                ),
                "Computed for nothing, to fill a compiled shape",
                top=1,
            ),
            Panel("Steps a second", "none", ((f"{_PER} ({_rate('engine_steps_total')})", "{{instance}}"),)),
            Panel(
                "Memory of the serving process",
                "bytes",
                (('process_resident_memory_bytes{job="jaxinfer", instance=~"$instance"}', "{{instance}}"),),
                "The engine is a process of its own",
            ),
            Panel(
                "Usage ledger, lines a second",
                "none",
                ((f"sum by (state) ({_rate('ledger_lines_total')})", "{{state}}"),),
                "Lost lines: the disk is full or gone",
            ),
        ),
    ),
)


def selected(query: str) -> str:
    """The query with the dashboard's selection in the braces that were left empty or begun."""
    return query.replace("{}", "{" + _CHOSEN + "}")


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in ROWS:
        panels.append({"id": len(panels) + 1, "type": "row", "title": title, "gridPos": _place(0, y, COLUMNS, 1)})
        y += 1
        width, height = (4, 4) if row[0].kind == "stat" else (COLUMNS // (2 if len(row) == 4 else 3), 8)
        for i, panel in enumerate(row):
            x = i * width % COLUMNS
            panels.append(_panel(panel, len(panels) + 1, _place(x, y + i * width // COLUMNS * height, width, height)))
        y += -(-len(row) * width // COLUMNS) * height
    return {
        "uid": "jaxinfer",
        "title": "jaxinfer",
        "tags": ["jaxinfer"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.top is not None:
        defaults["max"] = panel.top
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.note,
        "gridPos": place,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}}
        if panel.kind == "stat"
        else {"tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": selected(query), "legendFormat": legend}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [
        source,
        *(_labels(*each) for each in (("model", "Model", "model_name"), ("instance", "Replica", "instance"))),
    ]


def _labels(name: str, label: str, of: str) -> dict[str, Any]:
    query = f"label_values(jaxinfer:num_requests_running, {of})"
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": _SOURCE,
        "definition": query,
        "query": {"query": query, "refId": f"variable-{name}"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
