"""An engine whose device is pretended: scheduler, packer, loop and messages are the engine's own, a step takes exactly
as long as it is told to and costs no processor time.

Time on the device goes on by itself: a step begins when it was handed over or when the one before ended, whichever is
later, so that a host that is quick enough loses nothing, however late a sleeping thread wakes up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxinfer.engine import EngineLoop
from jaxinfer.messages import EngineInfo, Progress
from jaxinfer.runtime.buckets import make_ladder, pick_bucket
from jaxinfer.runtime.inputs import SlotSizes
from jaxinfer.runtime.packing import Packer
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.scheduler import Scheduler, SchedulerLimits
from jaxinfer.scheduling.step_plan import StepPlan, StepResult

from .counters import PARTS, Counters

PAGE_SIZE = 16
VOCAB_SIZE = 32_000
_LOOK = 16  # steps
FIRST_TOKEN = ord("a")  # letters, so that a token is a character of the answer


def waited_for_a_core() -> float:
    """Seconds that this thread was ready to run and did not, since it began. 0.0 where the kernel does not say."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


@dataclass(frozen=True)
class HostOptions:
    """counters: file of `Counters`."""

    step_seconds: float
    rows: int
    max_model_len: int
    counters: str

    def build(self, progress: Callable[[Progress], None]) -> EngineLoop:
        progress(Progress("load", 1, 1, "pretended"))
        pages = 1 + self.rows * -(-self.max_model_len // PAGE_SIZE)
        limits = SchedulerLimits(self.rows, 8 * self.rows, self.max_model_len, (), vocab_size=VOCAB_SIZE)
        scheduler = Scheduler(limits, PagePool(pages, PAGE_SIZE))
        return CountedLoop(scheduler, PretendedRunner(self), self._info(pages), Counters(Path(self.counters)))

    def _info(self, pages: int) -> EngineInfo:
        return EngineInfo(
            model="pretended",
            architecture="PretendedForCausalLM",
            vocab_size=VOCAB_SIZE,
            max_model_len=self.max_model_len,
            max_num_seqs=self.rows,
            max_num_batched_tokens=8 * self.rows,
            page_size=PAGE_SIZE,
            num_pages=pages,
            dtype="float32",
            tensor_parallel_size=1,
            device="1 x pretended",
            backends={"paged_attention": "pretended"},
            eos_token_ids=(),
            notes=(),
            executables=(),
            extra={},
        )


@dataclass(frozen=True)
class PretendedStep:
    """tokens: (rows, 1) int32, as the runner's come to the host. ends: seconds of time.monotonic()."""

    plan: StepPlan
    tokens: np.ndarray
    ends: float

    @property
    def ready(self) -> bool:
        return time.monotonic() >= self.ends

    def result(self) -> StepResult:
        left = self.ends - time.monotonic()
        if left > 0:
            time.sleep(left)
        return StepResult(self.tokens[: len(self.plan.rows)].tolist())


class PretendedRunner:
    """Packs like the runner and computes nothing."""

    compilations = 0

    def __init__(self, options: HostOptions) -> None:
        self.padded_tokens = 0
        self.packer = Packer(
            SlotSizes(options.rows, -(-options.max_model_len // PAGE_SIZE), PAGE_SIZE), VOCAB_SIZE, 512
        )
        self._ladder = make_ladder(8 * options.rows, options.rows, platform="cpu", batch_invariant=True)
        self._seconds = options.step_seconds
        self._free = 0.0  # when the device is done with what it has
        rng = np.random.default_rng(0)
        self._tokens = FIRST_TOKEN + rng.integers(0, 26, (64, options.rows, 1), dtype=np.int32)
        self._steps = 0

    def dispatch(self, plan: StepPlan) -> PretendedStep:
        bucket = pick_bucket(self._ladder, plan.num_tokens)
        self.padded_tokens += bucket.tokens - plan.num_tokens
        self.packer.pack_admissions(plan)
        self.packer.pack(plan, bucket)
        self.packer.most_logprobs(plan)
        self._steps += 1
        self._free = max(self._free, time.monotonic()) + self._seconds
        return PretendedStep(plan, self._tokens[self._steps % len(self._tokens)], self._free)


class CountedLoop(EngineLoop):
    """Counts the processor time of its thread by part: the clocks around the parts cost about 2 us a step."""

    def __init__(self, scheduler: Scheduler, runner: PretendedRunner, info: EngineInfo, counters: Counters) -> None:
        super().__init__(scheduler, runner, info)
        self._counters = counters
        self._spent = dict.fromkeys(PARTS, 0.0)
        scheduler.schedule = self._counted("schedule", scheduler.schedule)  # type: ignore[method-assign]
        scheduler.update = self._counted("update", scheduler.update)  # type: ignore[method-assign]
        packer = runner.packer
        packer.pack = self._counted("pack", packer.pack)  # type: ignore[method-assign]
        packer.pack_admissions = self._counted("admission", packer.pack_admissions)  # type: ignore[method-assign]

    def _counted(self, part: str, work: Callable[..., Any]) -> Callable[..., Any]:
        spent, clock = self._spent, time.thread_time

        def counted(*args: Any) -> Any:
            began = clock()
            try:
                return work(*args)
            finally:
                spent[part] += clock() - began

        return counted

    def _receive(self, *args: Any) -> None:
        began = time.thread_time()
        super()._receive(*args)
        self._spent["messages"] += time.thread_time() - began

    def _dispatch(self, *args: Any) -> Any:
        spent = self._spent
        began, inside = time.thread_time(), spent["pack"] + spent["admission"]
        launched = super()._dispatch(*args)
        spent["dispatch"] += time.thread_time() - began - (spent["pack"] + spent["admission"] - inside)
        return launched

    def _take(self, done: Any) -> Any:
        began, inside = time.thread_time(), self._spent["update"]
        outputs = super()._take(done)
        self._spent["result"] += time.thread_time() - began - (self._spent["update"] - inside)
        counters = self._counters
        counters.add("steps", 1)
        counters.add("rows", len(done.plan.rows))
        counters.set("last_rows", len(done.plan.rows))
        if self.scheduler.stats.steps % _LOOK == 0:
            counters.set("waited", waited_for_a_core())
        for part, seconds in self._spent.items():
            counters.set(part, seconds)
        return outputs

    def _post_outputs(self, *args: Any) -> None:
        began = time.thread_time()
        super()._post_outputs(*args)
        self._spent["post"] += time.thread_time() - began
