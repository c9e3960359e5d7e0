"""Results as pictures. matplotlib is an extra: it is imported here alone, and only when asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from serving.bench.measures import percentile_name

_INK, _GRID = "#222222", "#e4e4e4"
_SHADES = ("#9cc3dd", "#2f6f9f", "#173a56")  # lower percentiles are lighter
_PROMPT, _FIRST, _TOKEN, _ERROR = "#d9d9d9", "#d9772b", "#2f6f9f", "#b3261e"
_PANELS = (("ttft", "time to first token"), ("itl", "inter-token latency"), ("e2el", "end-to-end latency"))
_SHOWN = 120  # requests of a timeline


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=130, format="png", facecolor="white")


def latency_against_rate(runs: Sequence[Mapping[str, Any]], wanted: Sequence[float], title: str, path: Path) -> None:
    """Percentiles of each latency and the throughput, against the rate. Raises OSError when it cannot be written.

    runs: figures of `measures.summary`, one for each rate; `inf` stands at the right end.
    """
    figure = _figure(11.0, 6.6)
    axes = figure.subplots(2, 2)
    x = range(len(runs))
    labels = [
        run["request_rate"] if isinstance(run["request_rate"], str) else f"{run['request_rate']:g}" for run in runs
    ]
    for axis, (metric, name) in zip(axes.flat, _PANELS, strict=False):
        for shade, percentile in zip(_shades(len(wanted)), wanted, strict=True):
            key = percentile_name(percentile)
            values = [run.get(f"{key}_{metric}_ms") for run in runs]
            axis.plot(x, [_nan(v) for v in values], "o-", color=shade, label=key, linewidth=1.8, markersize=5)
        goal = (runs[0].get("goodput") or {}).get(metric)
        if goal is not None:
            axis.axhline(goal, color=_FIRST, linewidth=1.2, linestyle="--", label=f"goal {goal:g} ms")
        axis.set_title(f"{name}, ms", fontsize=10, color=_INK, loc="left")
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=8, frameon=False)
        _tidy(axis, x, labels)
    _throughput(axes.flat[3], x, runs)
    _tidy(axes.flat[3], x, labels)
    figure.suptitle(title, fontsize=11, color=_INK)
    _save(figure, path)


def _throughput(axis: Any, x: Sequence[int], runs: Sequence[Mapping[str, Any]]) -> None:
    output = [run["output_throughput"] for run in runs]
    axis.bar(x, output, width=0.5, color=_SHADES[0], zorder=2)
    for place, value, run in zip(x, output, runs, strict=True):
        said = f"{value:,.0f}" + (f"\n{run['good_share']:.0%} good" if "good_share" in run else "")
        said += f"\n{run['failed']} failed" if run["failed"] else ""
        axis.text(place, value, said, ha="center", va="bottom", fontsize=8, color=_INK)
    axis.set_title("output tokens per second", fontsize=10, color=_INK, loc="left")
    axis.set_ylim(0, 1.25 * max([*output, 1e-9]))


def timeline(requests: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """When each request waited and got its tokens, and tokens per second below. Raises OSError.

    requests: `measures.detailed` of one run. Of more than 120 requests the first 120 have a row.
    """
    shown = [request for request in requests if request["sent"] is not None][:_SHOWN]
    end = max((request["ended"] for request in requests), default=1.0)
    figure = _figure(11.0, min(9.5, 3.4 + 0.13 * len(shown)))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[max(1.2, len(shown) / 16), 1])
    size = max(1.2, min(7.0, 260 / max(1, len(shown))))
    for row, request in enumerate(shown):
        times = request["token_times"]
        first = times[0] if times else request["ended"]
        above.hlines(row, request["sent"], first, color=_PROMPT, linewidth=size, zorder=1)
        if times:
            above.hlines(row, first, times[-1], color="#cfe2ef", linewidth=size, zorder=1)
        above.plot(times[1:], [row] * len(times[1:]), "|", color=_TOKEN, markersize=size, markeredgewidth=0.8, zorder=2)
        above.plot(
            times[:1], [row] * len(times[:1]), "|", color=_FIRST, markersize=size + 2, markeredgewidth=1.8, zorder=3
        )
        if request["error"]:
            above.plot([request["ended"]], [row], "x", color=_ERROR, markersize=5, zorder=3)
    above.set_ylim(len(shown) - 0.2, -0.8)
    above.set_ylabel("request", fontsize=9)
    above.set_title(title, fontsize=10, color=_INK, loc="left", pad=22)
    _legend(above)
    _rates(below, requests, end)
    for axis in (above, below):
        axis.set_xlim(0, end * 1.01)
        _plain(axis, "x" if axis is above else "y")
    below.set_xlabel("seconds", fontsize=9)
    _save(figure, path)


def _legend(axis: Any) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=_PROMPT, linewidth=5, label="waits for its first token"),
        Line2D([], [], color=_FIRST, marker="|", linestyle="", markersize=9, markeredgewidth=2, label="first token"),
        Line2D([], [], color=_TOKEN, marker="|", linestyle="", markersize=8, label="later tokens"),
        Line2D([], [], color=_ERROR, marker="x", linestyle="", markersize=6, label="failed"),
    ]
    axis.legend(handles=entries, loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=4, fontsize=8, frameon=False)


def _rates(axis: Any, requests: Sequence[Mapping[str, Any]], end: float) -> None:
    """Tokens per second in a hundred slices of the run."""
    import numpy as np

    times = np.concatenate([[0.0], *(request["token_times"] for request in requests)])[1:]
    weights = np.concatenate([[0.0], *(_token_weights(request) for request in requests)])[1:]
    counts, edges = np.histogram(times, bins=100, range=(0, max(end, 1e-9)), weights=weights)
    axis.stairs(counts / np.diff(edges), edges, fill=True, color=_SHADES[0])
    axis.set_ylabel("tokens/s", fontsize=9)
    axis.set_ylim(bottom=0)


def _token_weights(request: Mapping[str, Any]) -> list[float]:
    """Tokens of each event. Where a protocol does not say them, the answer's tokens are shared out evenly."""
    counts = request["token_counts"]
    total = sum(counts)
    scale = request["output_tokens"] / total if total and request["output_tokens"] else 1.0
    return [scale * count for count in counts]


def _shades(count: int) -> list[str]:
    if count <= len(_SHADES):
        return list(_SHADES[-count:] if count < len(_SHADES) else _SHADES)
    return [_SHADES[i * len(_SHADES) // count] for i in range(count)]


def _nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _tidy(axis: Any, x: Sequence[int], labels: Sequence[str]) -> None:
    axis.set_xticks(list(x), labels, fontsize=9)
    axis.set_xlim(-0.5, len(labels) - 0.5)
    axis.set_xlabel("requests per second asked for", fontsize=9)
    _plain(axis, "y")


def _plain(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, color=_GRID, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, colors=_INK, labelsize=8.5)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(_GRID)
