"""What a trace and an engine's own clock say becomes parts of a step."""

from __future__ import annotations

import itertools
import json
import queue
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Died, EngineStats, SequenceOutput, Shutdown, StepOutputs, StepTimes, Submit
from serving.bench import profile
from serving.bench.profile import Load, Mark, Memory, Recording, figures, record, shares
from serving.bench.records import ServerTrouble
from serving.bench.trace import Event, NoTrace, busy_seconds, operations, read_events
from serving.commands import profile as command


def event(name: str, line: str, start: float, end: float) -> Event:
    return Event(name, "jit_step", line, start, end)


EVENTS = [
    event("while.3", "a", 0, 100),
    event("fusion.1", "a", 10, 40),
    event("fusion.2", "a", 40, 60),
    event("copy", "a", 45, 50),
    event("fusion.1", "b", 90, 130),
    event("dot", "a", 200, 300),
]


def test_busy_time_is_the_union_of_all_threads():
    assert busy_seconds(EVENTS) * 1e9 == pytest.approx(230)
    assert busy_seconds([]) == 0


def test_operations_count_their_own_time_once():
    found = {each.name: (each.count, round(each.seconds * 1e9)) for each in operations(EVENTS)}
    assert found == {"dot": (1, 100), "fusion": (3, 30 + 15 + 40), "while": (1, 50), "copy": (1, 5)}
    assert [each.name for each in operations(EVENTS)] == ["dot", "fusion", "while", "copy"]
    rows = shares(operations(EVENTS), 2, 2)
    assert [(row["operation"], row["calls"]) for row in rows] == [("dot", 0.5), ("fusion", 1.5), ("2 others", 1)]
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    assert rows[0]["milliseconds"] == pytest.approx(50e-6)


def test_no_trace(tmp_path):
    with pytest.raises(NoTrace, match="wrote no trace"):
        read_events(tmp_path)


def test_a_jax_without_a_reader_is_named(tmp_path, monkeypatch):
    import jax.profiler

    monkeypatch.delattr(jax.profiler, "ProfileData")
    with pytest.raises(NoTrace, match=r"no jax\.profiler\.ProfileData"):
        read_events(tmp_path)


def test_figures_of_a_step():
    begin = Mark(10.0, StepTimes(), EngineStats(steps=5, scheduled_tokens=100, padded_tokens=50, generated_tokens=6))
    stats = EngineStats(steps=15, scheduled_tokens=120, padded_tokens=110, generated_tokens=26)
    recording = Recording(begin, Mark(10.1, StepTimes(0.01, 0.02, 0.06, 0.005, 0.005, 3, 0.004), stats))
    found = figures(recording, Load(2, 90, 10), Memory(4_000_000, 1000, 1e9), 0.07)
    assert found["steps"] == 10
    assert (found["step_ms"], found["device_ms"]) == (pytest.approx(10), pytest.approx(7))
    assert (found["host_ms"], found["wait_ms"]) == (pytest.approx(4), pytest.approx(6))
    assert (found["starved_steps"], found["starved_ms"]) == (3, pytest.approx(0.4))
    assert found["padding_share"] == pytest.approx(60 / 80)
    assert found["kv_bytes"] == 1000 * 98 * 2  # 90 of the prompt, 3 made before, 5 to the middle; two rows
    assert found["memory_limit_ms"] == pytest.approx(4.196)
    assert found["of_memory_limit"] == pytest.approx(0.4196)
    assert figures(recording, Load(2, 90, 10), Memory(4_000_000, 1000, 1e9), None)["device_ms"] is None


class Stepping:
    """An engine that computes one prompt a step and then a token for everybody; ends or fails as it is told."""

    def __init__(self, fails: bool = False, ends_after: int | None = None) -> None:
        self.fails, self.ends_after = fails, ends_after
        self.steps = 0

    def run(self, inbox: Any, post: Callable[[Any], None]) -> None:
        submits: list[Submit] = []
        for self.steps in itertools.count(1):
            try:
                message = inbox.get(self.ends_after is not None and self.steps > self.ends_after)
            except queue.Empty:
                message = None
            if isinstance(message, Shutdown):
                return
            submits += [message] if isinstance(message, Submit) else []
            if self.fails and self.steps == 4:
                post(Died("it broke", ""))
                return
            outputs = [SequenceOutput(s.request_id, 0, (5,), None, None, None, 0, None) for s in submits]
            post(StepOutputs(outputs, [], EngineStats(steps=self.steps), StepTimes(self.steps / 1000)))


@pytest.fixture
def traced(monkeypatch) -> list[str]:
    import jax.profiler

    calls: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    return calls


def test_steps_are_recorded_once_all_rows_decode(traced):
    engine = Stepping()
    recording = record(engine, Load(3, 4, 6), 100, 16, Path("here"))
    assert traced == ["start here", "stop"]
    assert recording.steps == 6
    assert recording.begin.stats.steps == 3 + profile._SETTLE_STEPS
    assert recording.part("schedule") == pytest.approx(0.006)
    assert engine.steps == recording.end.stats.steps + 1  # it was ended at once


def test_an_engine_that_fails_or_ends_early_is_told(traced):
    with pytest.raises(ServerTrouble, match="it broke"):
        record(Stepping(fails=True), Load(3, 4, 6), 100, 16, Path("here"))
    with pytest.raises(ServerTrouble, match="before 6 steps"):
        record(Stepping(ends_after=5), Load(3, 4, 6), 100, 16, Path("here"))


SMALL = ("--max-model-len", "64", "--max-num-seqs", "2", "--max-num-batched-tokens", "16")


@pytest.mark.longer
def test_the_demo(tmp_path, capsys):
    argv = ("--batch-size", "2", "--input-len", "8", "--num-steps", "4", "--trace-dir", str(tmp_path / "t"))
    assert command.main([*argv, *SMALL, "--output-json", str(tmp_path / "p.json")], hub_cache=Path("/nonexistent")) == 0
    found = json.loads((tmp_path / "p.json").read_text())
    assert (found["steps"], found["rows"]) == (4, 2)
    assert 0 < found["device_ms"] <= 1.05 * found["step_ms"]
    # Four steps of a millisecond each: what lies between two readings of a clock shows.
    assert found["host_ms"] + found["wait_ms"] == pytest.approx(found["step_ms"], rel=0.15)
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)
    assert any((tmp_path / "t").rglob("*.xplane.pb"))
    shown = capsys.readouterr().out
    assert "of that limit is reached" in shown
    assert found["operations"][0]["operation"] in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--num-steps", "0"), "--num-steps is '0'; it must be a whole number of at least 1"),
        (("--trace-dir", "/nonexistent/a/b"), "--trace-dir is '/nonexistent/a/b'"),
        (("--output-json", "/nonexistent/a"), "--output-json is '/nonexistent/a'"),
        (("/nonexistent",), "/nonexistent"),
    ],
)
def test_what_cannot_be_is_refused(argv, said, capsys):
    try:
        code = command.main(argv, hub_cache=Path("/nonexistent"))
    except SystemExit as ended:
        code = ended.code
    assert code == 2
    assert said in capsys.readouterr().err
