"""Two models asked the same: what each gave, and the record of how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.evaluation import compare
from jaxinfer.evaluation.items import Task
from jaxinfer.evaluation.run import OnProgress, TaskResult, report, run_tasks, run_texts
from jaxinfer.evaluation.source import Source


@dataclass(frozen=True)
class SharedQuestions:
    """What both sides are asked.

    Attributes:
        tasks: {name: task}.
        texts: to score, and whose next tokens are compared.
        positions: of the texts, whose distributions count.
        alternatives: log-probabilities at each position.
        vocab_size: of both.
        seed: resamples the differences.
    """

    tasks: Mapping[str, Task]
    texts: Sequence[str]
    positions: int
    alternatives: int
    vocab_size: int
    seed: int


@dataclass(frozen=True)
class Side:
    """What one side gave. record: its report, under the name `spec` that the user gave it."""

    record: dict[str, Any]
    results: dict[str, TaskResult]
    distributions: list[compare.Distributions]


def ask_side(source: Source, spec: str, asked: SharedQuestions, progress: OnProgress) -> Side:
    """Asks one side everything."""
    results = run_tasks(source, asked.tasks, progress)
    scored = run_texts(source, asked.texts, progress) if asked.texts else None
    distributions = compare.collect_distributions(source, asked.texts, asked.positions, asked.alternatives, progress)
    return Side({"spec": spec, **report(source, results, scored)}, results, distributions)


def compare_sides(asked: SharedQuestions, a: Side, b: Side) -> dict[str, Any]:
    """The record of a comparison: tasks, overall, divergence, and each side's own report under a and b."""
    differences = compare.compare_tasks(a.results, b.results, seed=asked.seed)
    overall = compare.compare_all(a.results, b.results, seed=asked.seed)
    rows = {name: compare.difference_report(found) for name, found in differences.items()}
    for name, row in rows.items():
        row["skipped"] = len(asked.tasks[name].items) - row["n"] - row["dropped"]
    divergence = compare.divergence(a.distributions, b.distributions, asked.vocab_size, asked.alternatives)
    return {
        "tasks": rows,
        "overall": compare.difference_report(overall) if overall is not None else None,
        "divergence": compare.divergence_report(divergence),
        "a": a.record,
        "b": b.record,
    }
