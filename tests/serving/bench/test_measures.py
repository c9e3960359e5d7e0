"""Figures of answers whose times are known."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from serving.bench import plots, report
from serving.bench.measures import detailed, meets, most_at_once, percentiles, summary
from serving.bench.records import Answer
from serving.bench.run import Run

WANTED = (50.0, 90.0, 99.0)


def answer(sent: float, times: list[float], ended: float, kind: str = "", **more: object) -> Answer:
    found = Answer(kind, sent, sent, ended, times, [1] * len(times), prompt_tokens=10, output_tokens=len(times))
    found.counted = True
    for name, value in more.items():
        setattr(found, name, value)
    return found


def run_of(*answers: Answer, rate: float = 2.0) -> Run:
    return Run(rate, list(answers), 100.0, max(a.ended for a in answers), [0.0, 0.001], cpu_seconds=0.5)


def test_percentiles_are_numpys():
    values = np.random.default_rng(0).gamma(2, 0.1, 57).tolist()
    found = percentiles(values, WANTED)
    for p in WANTED:
        assert found[f"p{p:g}"] == pytest.approx(1e3 * np.percentile(values, p))
    assert found["mean"] == pytest.approx(1e3 * np.mean(values))
    assert found["std"] == pytest.approx(1e3 * np.std(values))
    assert found["max"] == pytest.approx(1e3 * max(values))
    assert set(percentiles([], WANTED).values()) == {None}


def test_latencies_of_one_answer():
    one = answer(100.0, [100.5, 100.6, 100.9], 101.0)
    assert one.ttft == pytest.approx(0.5)
    assert one.e2el == pytest.approx(1.0)
    assert one.itl == pytest.approx([0.1, 0.3])
    assert one.tpot == pytest.approx(0.25)  # half a second for the two tokens after the first
    assert answer(100.0, [100.5], 100.5).tpot is None


def test_summary():
    first = answer(100.0, [100.5, 100.6], 101.0)
    second = answer(100.5, [101.0, 101.2, 101.4, 101.6], 102.0, cached_tokens=5)
    failed = answer(100.6, [100.7], 104.0, error="HTTP 503: full")
    found = summary(run_of(first, second, failed), WANTED, {"ttft": 600, "e2el": 1200})
    assert (found["completed"], found["failed"], found["duration"]) == (2, 1, 4.0)
    assert found["errors"] == {"HTTP 503: full": 1}
    assert found["request_throughput"] == 0.5
    assert found["output_throughput"] == 1.5  # six tokens of whole answers in four seconds
    assert found["total_token_throughput"] == 6.5
    assert (found["total_input_tokens"], found["cached_input_tokens"]) == (20, 5)
    assert found["max_concurrent_requests"] == 3
    assert (found["request_goodput"], found["good_share"]) == (0.25, pytest.approx(1 / 3))
    assert found["p99_itl_ms"] == pytest.approx(200)
    assert found["median_itl_ms"] == pytest.approx(200)
    assert found["mean_ttft_ms"] == pytest.approx(500)
    assert found["p90_e2el_ms"] == pytest.approx(1450)
    assert "kinds" not in found


def test_goals():
    one = answer(0.0, [0.5, 0.6, 0.9], 1.0)
    assert meets(one, {})
    assert meets(one, {"ttft": 501, "tpot": 251, "e2el": 1001})
    for goal in ({"ttft": 499}, {"tpot": 249}, {"e2el": 999}, {"ttft": 501, "e2el": 999}):
        assert not meets(one, goal)
    assert meets(answer(0.0, [0.5], 0.5), {"tpot": 1})


def test_kinds_are_measured_apart():
    short, long = answer(100.0, [100.1, 100.2], 100.2, "short"), answer(100.0, [100.9], 101.0, "long")
    kinds = summary(run_of(short, long), WANTED, {})["kinds"]
    assert kinds["short"]["p50_ttft_ms"] == pytest.approx(100)
    assert kinds["long"]["p50_ttft_ms"] == pytest.approx(900)
    assert kinds["long"]["p50_itl_ms"] is None


def test_most_at_once():
    assert most_at_once([answer(0, [1], 2), answer(2, [3], 4), answer(3, [3.5], 5)]) == 2
    assert most_at_once([]) == 0


def test_a_client_that_falls_behind_says_so():
    late = answer(100.0, [100.5], 101.0, due=99.0)
    run = run_of(late)
    assert "1000 ms late" in run.troubles()[0]
    run.limited = True  # it waited for a place, as it was told to
    assert run.troubles() == []
    run.lag, run.cpu_seconds = [0.05] * 10, 0.95
    lag, busy = run.troubles()
    assert "event loop was up to 50 ms late" in lag
    assert "95% of the one core" in busy


def shown(*runs: Run, goals: dict[str, float] | None = None, metrics: tuple[str, ...] = ("ttft", "itl")) -> str:
    console = Console(file=io.StringIO(), width=160)
    report.show(console, [summary(run, WANTED, goals or {}) for run in runs], metrics, WANTED, "[title]")
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_table():
    good, bad = answer(100.0, [100.5, 100.62], 101.0), answer(100.0, [], 101.0, error="gone [away]")
    text = shown(run_of(good), run_of(good, bad, rate=float("inf")), goals={"ttft": 600})
    assert text.startswith("[title]")
    assert "rate inf: 1 failed: gone [away]" in text
    rows = {
        cells[1].strip(): [c.strip() for c in cells[2:4]]
        for cells in (line.split("│") for line in text.split("\n"))
        if len(cells) > 3
    }
    assert rows["answered / failed"] == ["1 / 0", "1 / 1"]
    assert rows["time to first token, ms: p50 / p90 / p99"] == ["500 / 500 / 500"] * 2
    assert rows["inter-token latency, ms: p50 / p90 / p99"] == ["120 / 120 / 120"] * 2
    assert rows["goodput, requests per second (ttft:600)"] == ["1.00 (100%)", "1.00 (50%)"]
    nothing = shown(run_of(bad))
    assert "- / - / -" in nothing


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    good, bad = answer(100.0, [100.5, 100.62], 101.0), answer(100.3, [], 101.0, error="gone")
    runs = [run_of(good), run_of(good, bad, rate=float("inf")), run_of(bad)]
    figures = [summary(run, WANTED, {"ttft": 600}) for run in runs]
    plots.latency_against_rate(figures, WANTED, "title", tmp_path / "a.png")
    plots.timeline(detailed(runs[1]), "title", tmp_path / "b.png")
    plots.timeline(detailed(runs[2]), "title", tmp_path / "c.png")
    for name in "abc":
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
