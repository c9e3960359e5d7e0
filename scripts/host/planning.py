"""What planning a step takes on the host, without any device: for so many running rows and so many waiting requests."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult

RUNNING = (16, 64, 256, 512, 1024)
WAITING = (0, 1_000, 100_000)
_PAGE, _PROMPT, _STEPS, _WARM = 64, 32, 200, 20


def planning(rows: int, waiting: int) -> float:
    """Median processor time of schedule and update, in microseconds a step, while `rows` decode and `waiting` wait."""
    scheduler = Scheduler(SchedulerLimits(rows, 4 * rows, 4096), PagePool(rows * 8 + 1, _PAGE))
    params = SamplingParams(max_tokens=2000, ignore_eos=True)
    for index in range(rows + waiting):
        scheduler.add(Submit(f"r{index}", tuple(range(3, 3 + _PROMPT)), params, index, 0, float(index)))
    spent: list[float] = []
    previous: StepPlan | None = None
    while len(spent) < _STEPS + _WARM:
        begin = time.thread_time()
        plan = scheduler.schedule()
        if previous is not None:
            scheduler.update(previous, StepResult([[9] for _ in previous.rows]))
        took = time.thread_time() - begin
        previous = plan
        if len(plan.rows) == plan.num_tokens == rows:
            spent.append(1e6 * took)
    return statistics.median(spent[_WARM:])


def table() -> list[dict[str, Any]]:
    """A row for each number of running rows, with the microseconds for each number of waiting requests."""
    return [{"running": rows, **{f"{n} waiting": planning(rows, n) for n in WAITING}} for rows in RUNNING]


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Cost against running rows, a line for each number of waiting requests. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for waiting, style in zip(WAITING, ("-", "--", ":"), strict=True):
        values = [row[f"{waiting} waiting"] for row in found]
        axis.plot([row["running"] for row in found], values, style, marker="o", label=f"{waiting:,} waiting")
    axis.set_xlabel("running rows")
    axis.set_ylabel("schedule and update, microseconds a step")
    axis.set_ylim(bottom=0)
    axis.grid(color="#e4e4e4")
    axis.legend()
    figure.savefig(path, dpi=130, format="png", facecolor="white")
