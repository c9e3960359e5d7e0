"""Tables and the progress bar of `jaxinfer eval`, on a terminal and in a log."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from serving.commands.evaluation_view import EvaluationProgress, print_comparison, print_report

WIDE = {"dtype": "float32", "device": "1 x cpu"}


def task(accuracy: float | None, **more: Any) -> dict[str, Any]:
    base = {"low": 0.1, "high": 0.9, "n": 0 if accuracy is None else 1000, "baseline": accuracy and 0.25}
    return {"accuracy": accuracy, **base, "skipped": 0, "unheard": 0, "unanswered": 0, "cut_off": 0, **more}


def record(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "a[b]",
        "where": "offline",
        "prompts": "chat template",
        "settings": WIDE,
        "tasks": {"sums": task(0.955), "none": task(None, skipped=7, unheard=5)},
        "perplexity": None,
        "recall_by_depth": [],
        "json_validity": None,
    }
    return {**base, **changes}


def shown(show: Any, what: dict[str, Any], width: int = 100) -> list[str]:
    out = io.StringIO()
    show(Console(file=out, width=width, highlight=False), what)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_report() -> None:
    lines = shown(print_report, record())
    assert lines[0] == "a[b]  offline, float32, 1 x cpu; prompts by chat template"
    (sums,) = [line for line in lines if line.startswith("sums")]
    assert sums.split()[1:] == ["███████████████████▏", "95.5", "%", "10.0", "to", "90.0", "1,000", "25.0", "%"]
    (none,) = [line for line in lines if line.startswith("none")]
    assert none.split() == ["none", "-", "-", "0", "-"]
    assert "· skipped because prompt and answer do not fit the context: none 7" in lines
    assert "· not asked because the prompt shows nothing of tools or thinking: none 5" in lines
    assert not any("cut off" in line for line in lines)


def test_nothing_but_perplexity() -> None:
    text = {"per_token": 2.0, "bits_per_byte": 0.5, "tokens": 1234, "bytes": 5000, "texts": 9, "skipped": 3}
    lines = shown(print_report, record(tasks={}, perplexity=text), width=200)
    expected = (
        "perplexity 2.000 per token, 0.5000 bits per byte (1,234 tokens, 5,000 bytes, 9 texts; 3 skipped, they do"
    )
    assert any(expected in line for line in lines)
    none = {**text, "per_token": None, "bits_per_byte": None, "tokens": 0, "bytes": 0, "texts": 0}
    assert any(
        "nothing was scored; 3 skipped" in line for line in shown(print_report, record(tasks={}, perplexity=none))
    )


def difference(low: float, high: float, **more: Any) -> dict[str, Any]:
    middle = (low + high) / 2
    return {"a": 0.5, "b": 0.5 + middle, "difference": middle, "low": low, "high": high, "n": 1000, **more}


def test_a_comparison_says_which_differences_count() -> None:
    counts = {"dropped": 0, "skipped": 0}
    nothing = {"a": None, "b": None, "difference": None, "low": None, "high": None, "n": 0, "dropped": 2, "skipped": 1}
    tasks = {
        "up": difference(0.01, 0.03, **counts),
        "down": difference(-0.3, -0.1, **counts),
        "even": difference(-0.01, 0.02, **counts),
        "none": nothing,
    }
    divergence = {"mean_kl": 1.5e-4, "largest_kl": 0.25, "exact": False, "alternatives": 1000, "positions": 2000}
    divergence["top1_agreement"] = {"share": 0.9955, "low": 0.99, "high": 0.998}
    side = record(spec="demo@dtype=float32")
    what = {"tasks": tasks, "overall": difference(-0.1, 0.0), "divergence": divergence, "a": side, "b": side}
    lines = shown(print_comparison, what, width=200)
    verdicts = {line.split()[0]: line for line in lines if line}
    assert verdicts["up"].split()[5:] == ["+2.0", "+1.0", "to", "+3.0", "1,000", "B", "is", "better"]
    assert verdicts["down"].endswith("B is worse")
    assert verdicts["even"].endswith("within noise")
    assert verdicts["all"].endswith("within noise")
    assert any("only one of the two could take them: none 2" in line for line in lines)
    assert any("neither can take the prompt and its answer: none 1" in line for line in lines)
    assert any("mean KL(A||B) 1.50e-04 nats (a lower bound, from the 1,000 likeliest" in line for line in lines)
    assert "top-1 agreement 99.55 % (99.00 to 99.80)" in " ".join(lines)  # wherever the line was broken


def test_progress_moves_on_a_terminal_only() -> None:
    for terminal in (True, False):
        out = io.StringIO()
        with EvaluationProgress(Console(file=out, force_terminal=terminal, width=100)) as progress:
            progress.waiting("loading and compiling")
            for what in ("sums", "lists"):
                for done in range(4):
                    progress(what, done, 3)
            progress._bars.refresh()
        assert ("3/3" in out.getvalue()) == terminal
        assert ("lists" in out.getvalue()) == terminal
