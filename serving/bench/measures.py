"""Figures of a run, under the names that `vllm bench serve` gives them where it has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.bench.records import Answer, kinds_of
from serving.bench.run import Run

METRICS = ("ttft", "tpot", "itl", "e2el", "client_queue_time")
GOALS = ("ttft", "tpot", "e2el")
_ERRORS_KEPT = 10


def percentiles(seconds: Sequence[float], wanted: Sequence[float]) -> dict[str, float | None]:
    """Mean, median, standard deviation, largest and the wanted percentiles, in milliseconds; None without values.

    A percentile between two values is interpolated linearly, as numpy does it.
    """
    names = ["mean", "median", "std", "max", *(percentile_name(p) for p in wanted)]
    if not len(seconds):
        return dict.fromkeys(names)
    values = 1e3 * np.asarray(seconds)
    figures = [values.mean(), np.median(values), values.std(), values.max(), *np.percentile(values, list(wanted))]
    return dict(zip(names, map(float, figures), strict=True))


def percentile_name(percentile: float) -> str:
    return f"p{percentile:g}"


def values_of(answers: Sequence[Answer]) -> dict[str, list[float]]:
    """Seconds of each metric, over whole answers."""
    return {
        "ttft": [a.ttft for a in answers],
        "tpot": [a.tpot for a in answers if a.tpot is not None],
        "itl": [gap for a in answers for gap in a.itl],
        "e2el": [a.e2el for a in answers],
        "client_queue_time": [max(0.0, a.sent - a.due) for a in answers],
    }


def meets(answer: Answer, goals: Mapping[str, float]) -> bool:
    """Whether a whole answer is within every goal, milliseconds. An answer of one token meets any goal of tpot."""
    return all(1e3 * (getattr(answer, name) or 0.0) <= most for name, most in goals.items())


def summary(run: Run, wanted: Sequence[float], goals: Mapping[str, float]) -> dict[str, Any]:
    """The figures of a run. Rates and throughputs are over the time from its start to the end of its last answer."""
    whole = [answer for answer in run.answers if answer.error is None]
    failed = [answer for answer in run.answers if answer.error is not None]
    seconds = run.duration or 1.0
    output = sum(answer.output_tokens for answer in whole)
    prompt = sum(answer.prompt_tokens for answer in whole)
    events = sum(len(answer.event_times) for answer in whole)
    figures: dict[str, Any] = {
        "request_rate": "inf" if np.isinf(run.rate) else run.rate,
        "duration": run.duration,
        "completed": len(whole),
        "failed": len(failed),
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "cached_input_tokens": sum(answer.cached_tokens for answer in whole),
        "request_throughput": len(whole) / seconds,
        "output_throughput": output / seconds,
        "total_token_throughput": (prompt + output) / seconds,
        "max_concurrent_requests": most_at_once(run.answers),
        "tokens_per_event": output / events if events else None,
        "counted_by_server": all(answer.counted for answer in whole),
        "errors": dict(Counter(answer.error for answer in failed).most_common(_ERRORS_KEPT)),
        "client": {
            "cpu_share": run.cpu_seconds / seconds,
            "sent_late_ms": percentiles(run.lateness, (50, 99)),
            "event_loop_lag_ms": percentiles(run.lag, (50, 99)),
            "troubles": run.troubles(),
        },
    }
    if goals:
        good = sum(meets(answer, goals) for answer in whole)
        figures |= {"goodput": dict(goals), "request_goodput": good / seconds}
        figures["good_share"] = good / len(run.answers) if run.answers else 0.0
    figures |= latencies(whole, wanted)
    kinds = kinds_of(whole)
    if len(kinds) > 1:
        figures["kinds"] = {
            kind: {"completed": len(own), **latencies(own, wanted)}
            for kind in kinds
            for own in [[answer for answer in whole if answer.kind == kind]]
        }
    return figures


def latencies(answers: Sequence[Answer], wanted: Sequence[float]) -> dict[str, float | None]:
    """mean_ttft_ms, p99_itl_ms and so on."""
    return {
        f"{figure}_{metric}_ms": value
        for metric, seconds in values_of(answers).items()
        for figure, value in percentiles(seconds, wanted).items()
    }


def most_at_once(answers: Sequence[Answer]) -> int:
    """Most requests that were in flight at the same time."""
    changes = sorted([(a.sent, 1) for a in answers if a.sent] + [(a.ended, -1) for a in answers if a.sent])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def detailed(run: Run) -> list[dict[str, Any]]:
    """Each request: seconds from the run's start."""
    return [
        {
            "kind": a.kind,
            "due": a.due - run.began,
            "sent": a.sent - run.began if a.sent else None,
            "ended": a.ended - run.began,
            "token_times": [time - run.began for time in a.event_times],
            "token_counts": a.event_tokens,
            "prompt_tokens": a.prompt_tokens,
            "output_tokens": a.output_tokens,
            "cached_tokens": a.cached_tokens,
            "error": a.error,
        }
        for a in run.answers
    ]
