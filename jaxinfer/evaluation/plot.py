"""A report as a picture. matplotlib is an extra: it is imported here alone, and only when asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ACCURACY, _BASELINE, _INK, _GRID = "#2f6f9f", "#c7c7c7", "#222222", "#e4e4e4"
_ROW = 0.34  # inches of height for each task


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write_plot(record: Mapping[str, Any], path: Path) -> None:
    """Accuracy of each task with its interval and baseline; recall by depth beside it where there is any.

    `record` is the one of one model. Raises OSError when the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tasks = {name: task for name, task in record["tasks"].items() if task["n"]}
    depths = record["recall_by_depth"]
    height = max(3.4 if depths else 2.4, 1.5 + _ROW * len(tasks))
    figure = Figure(figsize=(11.0 if depths else 7.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, width_ratios=[1.25, 1]) if depths else [figure.subplots()]
    _draw_tasks(axes[0], tasks)
    if depths:
        _draw_depths(axes[1], depths)
    figure.suptitle(_title(record), fontsize=11, color=_INK)
    figure.savefig(path, dpi=150, format="png", facecolor="white")


def _title(record: Mapping[str, Any]) -> str:
    settings, found = record["settings"], record["perplexity"]
    parts = [f"{record['model']}, {settings.get('dtype')}, {settings.get('device')}"]
    if found and found["per_token"] is not None:
        parts.append(f"held-out stories: perplexity {found['per_token']:.2f}, {found['bits_per_byte']:.3f} bits/byte")
    if record["json_validity"]:
        parts.append(f"valid JSON {record['json_validity']['share'] * 100:.1f} %")
    return "  ·  ".join(parts)


def _draw_tasks(axis: Any, tasks: Mapping[str, Any]) -> None:
    rows = list(range(len(tasks)))
    shares = [100 * task["accuracy"] for task in tasks.values()]
    below = [100 * (task["accuracy"] - task["low"]) for task in tasks.values()]
    above = [100 * (task["high"] - task["accuracy"]) for task in tasks.values()]
    baselines = [100 * task["baseline"] for task in tasks.values()]
    axis.barh(rows, shares, height=0.62, color=_ACCURACY, label="accuracy, 95 % interval", zorder=2)
    errors = [[max(0.0, value) for value in side] for side in (below, above)]
    axis.errorbar(shares, rows, xerr=errors, fmt="none", ecolor=_INK, elinewidth=1.2, capsize=2.5, zorder=4)
    for row, baseline in zip(rows, baselines, strict=True):
        axis.plot([baseline] * 2, [row - 0.42, row + 0.42], color="white", linewidth=4, zorder=3)
    axis.vlines(
        baselines,
        [row - 0.42 for row in rows],
        [row + 0.42 for row in rows],
        color="#d9772b",
        linewidth=2,
        label="always the same answer",
        zorder=3.5,
    )
    for row, share, up in zip(rows, shares, above, strict=True):
        axis.text(min(share + up, 100) + 1.5, row, f"{share:.1f}", va="center", fontsize=8.5, color=_INK)
    axis.set_yticks(rows, [f"{name}  (n = {task['n']:,})" for name, task in tasks.items()], fontsize=9)
    axis.set_xlim(0, 109)
    axis.set_xticks(range(0, 101, 20))
    axis.set_xlabel("accuracy, %", fontsize=9)
    _tidy(axis, "x")
    axis.set_ylim(len(tasks) - 0.4, -0.6)  # the first task on top
    axis.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, fontsize=8.5, frameon=False)


def _draw_depths(axis: Any, depths: list[Mapping[str, Any]]) -> None:
    middle = [(entry["from"] + entry["to"]) / 2 for entry in depths]
    shares = [100 * entry["accuracy"] for entry in depths]
    errors = [
        [max(0.0, 100 * (entry["accuracy"] - entry["low"])) for entry in depths],
        [max(0.0, 100 * (entry["high"] - entry["accuracy"])) for entry in depths],
    ]
    axis.errorbar(
        middle, shares, yerr=errors, fmt="o-", color=_ACCURACY, ecolor=_INK, elinewidth=1.2, capsize=3, markersize=5
    )
    for x, entry in zip(middle, depths, strict=True):
        axis.text(x, 1.01, f"n = {entry['n']:,}", transform=axis.get_xaxis_transform(), ha="center", fontsize=7.5)
    ends = sorted({entry[end] for entry in depths for end in ("from", "to")})
    axis.set_xticks(ends, [f"{end:,}" for end in ends], fontsize=8.5)
    axis.set_xlim(ends[0] - 40, ends[-1] + 40)  # room for the outermost labels
    axis.set_ylim(0, 104)
    axis.set_yticks(range(0, 101, 20))
    axis.set_xlabel("tokens between the fact and the question", fontsize=9)
    axis.set_ylabel("recall accuracy, %", fontsize=9)
    _tidy(axis, "y")


def _tidy(axis: Any, grid: str) -> None:
    axis.grid(axis=grid, color=_GRID, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, colors=_INK)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.spines["bottom"].set_color(_GRID)
