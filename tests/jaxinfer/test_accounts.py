"""What the engine says of a sequence's cost, and of its own time."""

from __future__ import annotations

import time

import pytest

from jaxinfer.engine import EngineLoop
from jaxinfer.messages import StepOutputs, Submit
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult


class SlowDevice:
    """A runner whose steps take `seconds` on a device of its own; every step is padded to 16 tokens."""

    compilations = 0

    def __init__(self, seconds: float) -> None:
        self.padded_tokens = 0
        self.plans: list[StepPlan] = []
        self._seconds = seconds
        self._free_at = 0.0

    def dispatch(self, plan: StepPlan) -> SlowStep:
        self.padded_tokens += 16 - plan.num_tokens
        self.plans.append(plan)
        self._free_at = max(self._free_at, time.perf_counter()) + self._seconds
        return SlowStep(plan, self._free_at)


class SlowStep:
    def __init__(self, plan: StepPlan, done_at: float) -> None:
        self._plan, self._done_at = plan, done_at

    @property
    def ready(self) -> bool:
        return time.perf_counter() >= self._done_at

    def result(self) -> StepResult:
        time.sleep(max(0.0, self._done_at - time.perf_counter()))
        return StepResult([[7]] * len(self._plan.rows))


def engine(seconds: float, pages: int = 65) -> tuple[EngineLoop, SlowDevice]:
    device = SlowDevice(seconds)
    scheduler = Scheduler(SchedulerLimits(4, 16, 256), PagePool(pages, 4))
    return EngineLoop(scheduler, device, None, check=True), device  # type: ignore[arg-type]


def submit(name: str, prompt: int, tokens: int) -> Submit:
    ids = tuple(range(hash(name) % 1000, hash(name) % 1000 + prompt))
    return Submit(name, ids, SamplingParams(max_tokens=tokens), 0, 0, time.monotonic())


def run(loop: EngineLoop) -> tuple[dict[str, object], StepOutputs]:
    accounts: dict[str, object] = {}
    posted: list[StepOutputs] = []
    while not loop.idle:
        loop._post_outputs(loop.step(), posted.append)
    for message in posted:
        for output in message.sequences:
            assert (output.account is None) == (output.finish_reason is None)
            if output.account is not None:
                accounts[output.request_id] = output.account
    return accounts, posted[-1]


def test_the_accounts_add_up_to_the_steps():
    loop, device = engine(0.004)
    begin = time.monotonic()
    loop.scheduler.add(submit("a", 40, 5))
    loop.scheduler.add(submit("b", 3, 9))
    accounts, last = run(loop)
    a, b = accounts["a"], accounts["b"]
    assert begin <= a.started <= b.started <= time.monotonic()
    assert (a.chunks, b.chunks) == (3, 1)  # 16 tokens a step; b's prompt fits behind the end of a's
    assert (a.computed_tokens, b.computed_tokens) == (40 + 4, 3 + 8)
    assert a.pages == 11
    assert a.preemptions == b.preemptions == 0
    assert a.padded_tokens + b.padded_tokens == pytest.approx(device.padded_tokens)
    steps = len(device.plans)
    # Every step takes 4 ms of the device, whatever the host does meanwhile.
    assert 0.9 * 0.004 * steps < a.device_seconds + b.device_seconds <= time.monotonic() - begin
    assert last.stats.steps == steps


def test_preempted_work_is_counted_again():
    loop, _ = engine(0.0, pages=7)
    loop.scheduler.add(submit("a", 8, 10))
    loop.scheduler.add(submit("b", 8, 10))
    accounts, last = run(loop)
    assert last.stats.preemptions == sum(account.preemptions for account in accounts.values()) > 0
    loser = max(accounts.values(), key=lambda account: account.preemptions)
    assert loser.chunks >= 2
    assert loser.computed_tokens > 8 + 9


def test_an_aborted_sequence_has_an_account_too():
    loop, _ = engine(0.0)
    loop.scheduler.add(submit("waits", 8, 10))
    loop.scheduler.abort("waits")
    (output,) = loop.scheduler.take_ended()
    assert output.account is not None
    assert (output.account.started, output.account.computed_tokens) == (0.0, 0)


def test_the_engine_says_where_its_time_went():
    loop, _ = engine(0.004)
    begin = time.perf_counter()
    loop.scheduler.add(submit("a", 4, 20))
    _, last = run(loop)
    took = time.perf_counter() - begin
    times = last.times
    parts = times.schedule + times.dispatch + times.device + times.update + times.messages
    assert parts == pytest.approx(took, rel=0.1, abs=0.01)
    assert times.device > 0.25 * took  # the host only waits


def test_a_host_that_is_late_starves_the_device():
    loop, device = engine(0.0)
    loop.scheduler.add(submit("a", 4, 20))
    _, last = run(loop)
    assert last.times.starved_steps == len(device.plans) - 1  # the first one found an idle engine
    assert last.times.starved_seconds > 0


def test_idle_time_is_in_no_part():
    loop, _ = engine(0.0)
    loop.scheduler.add(submit("a", 4, 3))
    run(loop)
    loop._clock.pause()
    time.sleep(0.1)
    loop.scheduler.add(submit("b", 4, 3))
    _, last = run(loop)
    times = last.times
    assert times.schedule + times.dispatch + times.device + times.update + times.messages < 0.1


def test_the_last_plan_is_described_without_tokens():
    loop, _ = engine(0.0)
    assert loop.describe()["rows"] == []
    loop.scheduler.add(submit("a", 40, 5))
    loop.step()
    found = loop.describe()
    assert found["step"] == 1
    assert found["tokens"] == 16
    assert found["steps_in_flight"] == 1
    assert found["rows"] == [
        {"request_id": "a", "index": 0, "slot": 0, "start": 0, "length": 16, "samples": False, "new_pages": 4}
    ]
