"""What `jaxinfer bench serve` prints: metrics down, rates across."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from serving.bench.measures import percentile_name

_TITLES = {
    "ttft": "time to first token, ms",
    "tpot": "time per output token, ms",
    "itl": "inter-token latency, ms",
    "e2el": "end-to-end latency, ms",
    "client_queue_time": "wait in this client, ms",
}
_BAD = "[red]"


def show(
    console: Console, runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], wanted: Sequence[float], title: str
) -> None:
    """One table of all rates, then one for kinds of requests where there are some, then errors and warnings."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="dim")
    table.add_column("requests per second asked for", style="dim", no_wrap=True)
    for run in runs:
        table.add_column(_rate(run), justify="right", no_wrap=True, header_style="bold")
    for label, cell in _overall(runs):
        table.add_row(label, *(cell(run) for run in runs))
    names = " / ".join(percentile_name(p) for p in wanted)
    for i, metric in enumerate(metrics):
        if not i:
            table.add_section()
        table.add_row(f"{_TITLES[metric]}: {names}", *(_percentiles(run, metric, wanted) for run in runs))
    console.print(table)
    if any("kinds" in run for run in runs):
        console.print(_kinds(runs, [name for name in metrics if name != "e2el"], wanted, names))
    for run in runs:
        for error, count in run["errors"].items():
            console.print(f"{_BAD}rate {_rate(run)}:[/] {count} failed: {escape(error)}", soft_wrap=True)
        for trouble in run["client"]["troubles"]:
            console.print(f"[yellow]rate {_rate(run)}:[/] {escape(trouble)}", soft_wrap=True)
        if run["completed"] and not run["counted_by_server"]:
            said = "the server sent no usage: an event is counted as a token, prompts are not counted"
            console.print(f"[yellow]rate {_rate(run)}:[/] {said}", soft_wrap=True)


def _overall(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Callable[[Mapping[str, Any]], str]]]:
    rows: list[tuple[str, Callable[[Mapping[str, Any]], str]]] = [
        ("requests per second answered", lambda run: f"{run['request_throughput']:.2f}"),
        ("answered / failed", _ends),
        ("most at once", lambda run: f"{run['max_concurrent_requests']}"),
        ("output tokens per second", lambda run: f"{run['output_throughput']:,.1f}"),
        ("all tokens per second", lambda run: f"{run['total_token_throughput']:,.1f}"),
        ("prompt tokens, of them cached", lambda run: f"{run['total_input_tokens']:,}, {_cached(run)}"),
        ("tokens in an event", lambda run: _number(run["tokens_per_event"], 2)),
    ]
    if any("goodput" in run for run in runs):
        goals = " ".join(f"{name}:{value:g}" for name, value in runs[0]["goodput"].items())
        rows.append(
            (f"goodput, requests per second ({goals})", lambda run: f"{run['request_goodput']:.2f} ({_share(run)})")
        )
    return rows


def _ends(run: Mapping[str, Any]) -> str:
    failed = f"{_BAD}{run['failed']}[/]" if run["failed"] else "0"
    return f"{run['completed']} / {failed}"


def _cached(run: Mapping[str, Any]) -> str:
    total = run["total_input_tokens"]
    return f"{run['cached_input_tokens'] / total:.0%}" if total else "-"


def _share(run: Mapping[str, Any]) -> str:
    return f"{run['good_share']:.0%}"


def _rate(run: Mapping[str, Any]) -> str:
    rate = run["request_rate"]
    return rate if isinstance(rate, str) else f"{rate:g}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def milliseconds(value: float | None) -> str:
    """Three digits where there are so many."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _percentiles(figures: Mapping[str, Any], metric: str, wanted: Sequence[float]) -> str:
    return " / ".join(milliseconds(figures.get(f"{percentile_name(p)}_{metric}_ms")) for p in wanted)


def _kinds(runs: Sequence[Mapping[str, Any]], metrics: Sequence[str], wanted: Sequence[float], names: str) -> Table:
    """The same metrics for each kind of request."""
    table = Table(title="by kind of request", title_justify="left", title_style="bold", header_style="dim")
    table.add_column("kind", no_wrap=True)
    table.add_column("metric", style="dim", no_wrap=True)
    for run in runs:
        table.add_column(_rate(run), justify="right", no_wrap=True, header_style="bold")
    kinds = list(dict.fromkeys(kind for run in runs for kind in run.get("kinds", {})))
    for kind in kinds:
        own = [run.get("kinds", {}).get(kind, {}) for run in runs]
        table.add_row(escape(kind or "other"), "requests", *(str(figures.get("completed", 0)) for figures in own))
        for metric in metrics:
            table.add_row(
                "", f"{_TITLES[metric]}: {names}", *(_percentiles(figures, metric, wanted) for figures in own)
            )
        table.add_section()
    return table
