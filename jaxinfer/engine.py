"""The engine's loop: one thread, one step in flight.

While the device computes step N the host plans and dispatches N + 1, then takes N's tokens. Pages may be freed while a
step that writes to them is still in flight: steps run in dispatch order on donated KV, so whoever gets the pages next
writes later. In `serve` the loop runs in a process of its own, in `LLM` and in tests in a thread; the code is the same.
"""

from __future__ import annotations

import math
import queue
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from jaxinfer.errors import InvalidRequest
from jaxinfer.expert_load import ExpertLoad
from jaxinfer.messages import (
    Abort,
    Died,
    Drain,
    Drained,
    EngineInfo,
    Rejected,
    SequenceOutput,
    Shutdown,
    StepOutputs,
    Submit,
    TellExpertLoad,
    Warmed,
)
from jaxinfer.scheduling.scheduler import DuplicateRequest, Scheduler
from jaxinfer.scheduling.step_plan import PlanRow, StepPlan, StepResult
from jaxinfer.step_clock import MESSAGES, SCHEDULE, UPDATE, StepClock

Post = Callable[[Any], None]

# What is taken from the inbox between two steps while sequences wait for the next one: messages, each of a few
# microseconds, and as many again for a prompt of so many tokens. A client's thousand prompts hold up nobody's tokens.
MESSAGES_A_STEP, _TOKENS_A_MESSAGE = 256, 256

_WARM_UP_SECONDS = 0.05  # how often an idle engine looks for programs that were compiled meanwhile


class PendingStep(Protocol):
    def result(self) -> StepResult: ...

    @property
    def ready(self) -> bool:
        """Whether the device has finished it."""
        ...


class StepRunner(Protocol):
    """What the engine needs of a runner; tests bring a fake one."""

    padded_tokens: int

    def dispatch(self, plan: StepPlan) -> PendingStep: ...

    @property
    def compilations(self) -> int: ...


class WarmUp(Protocol):
    """Programs that are compiled while steps run: a `Runner` that has begun."""

    def adopt(self) -> None:
        """Lets steps use what has been compiled since the last call. Does not wait."""
        ...

    @property
    def token_budget(self) -> int:
        """Tokens that a step may have by now."""
        ...

    @property
    def whole(self) -> bool:
        """Whether all programs are compiled."""
        ...

    @property
    def compile_seconds(self) -> list[tuple[str, float]]: ...

    def stop(self) -> None:
        """Compiles nothing more."""
        ...


class ExpertLoads(Protocol):
    """What the experts of a model have computed: a runner's `ExpertCounts`."""

    def report(self, *, idle: bool) -> ExpertLoad | None:
        """What is known, when that is news. Waits for no step. idle: none is in flight."""
        ...

    def now(self) -> ExpertLoad:
        """Everything that was dispatched. Waits for it."""
        ...


class Inbox(Protocol):
    """A queue of messages: `queue.Queue`, or the process side's pipe reader."""

    def get(self, block: bool = True, timeout: float | None = None) -> Any: ...


class InFlight(NamedTuple):
    """A dispatched step. padded: tokens it computes for nothing. launched: see StepClock."""

    plan: StepPlan
    pending: PendingStep
    padded: int
    launched: float


class EngineLoop:
    """Turns messages into steps. `info` is what the engine settled on; `check` turns on integrity checks every step.

    warm_up: what goes on being compiled; until it is whole, steps have as many tokens as it says. on_warm is called
    when it is, or when the loop ends before. expert_loads: of a model with experts.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: StepRunner,
        info: EngineInfo,
        *,
        check: bool = False,
        warm_up: WarmUp | None = None,
        on_warm: Callable[[], None] = lambda: None,
        expert_loads: ExpertLoads | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.info = info
        self._check = check
        self._warm_up = warm_up
        self._on_warm = on_warm
        self._expert_loads = expert_loads
        self._limits = scheduler.limits  # once all programs are compiled
        if warm_up is not None:
            self._fit_steps(warm_up)
        self._in_flight: InFlight | None = None
        self._clock = StepClock()
        self._planned = StepPlan([]), time.monotonic()  # the last plan, and when it was made
        self._draining = False
        self._stopped = False

    def step(self) -> StepOutputs | None:
        """Plans and dispatches a step, then takes the results of the one before. None when there is nothing to say."""
        self._clock.lap(MESSAGES)
        plan = self.scheduler.schedule()
        if self._check:
            self.scheduler.check_integrity(plan)
        self._clock.lap(SCHEDULE)
        done = self._in_flight
        launched = self._dispatch(plan, done) if plan else None
        outputs = self._take(done) if done is not None else None
        self._in_flight = launched
        if self._check:
            self.scheduler.check_integrity()
        if launched is None and done is None and self.scheduler.has_unfinished:
            raise RuntimeError("the scheduler has unfinished requests but plans nothing for them")
        return outputs

    def _dispatch(self, plan: StepPlan, before: InFlight | None) -> InFlight:
        padded = self.runner.padded_tokens
        self._planned = plan, time.monotonic()
        pending = self.runner.dispatch(plan)
        launched = self._clock.launch(starved=before is not None and before.pending.ready)
        return InFlight(plan, pending, self.runner.padded_tokens - padded, launched)

    def _take(self, done: InFlight) -> StepOutputs:
        result = done.pending.result()
        seconds = self._clock.finish(done.launched)
        outputs = self.scheduler.update(done.plan, result, seconds, done.padded)
        self._clock.lap(UPDATE)
        return outputs

    def describe(self) -> dict[str, Any]:
        """The last plan, for a person who wonders why nothing moves: sizes and ids, no token of anybody's text.

        Safe to call from another thread: plans are not changed once made.
        """
        plan, since = self._planned
        rows = [
            {
                "request_id": row.request_id,
                "index": row.index,
                "slot": row.slot,
                "start": row.start,
                "length": row.length,
                "samples": row.draws > 0,
                "new_pages": _new_pages(row),
            }
            for row in plan.rows
        ]
        return {
            "step": self.scheduler.stats.steps + 1,
            "seconds_since_dispatch": round(time.monotonic() - since, 3),
            "tokens": plan.num_tokens,
            "rows": rows,
            "steps_in_flight": int(self._in_flight is not None),
            "free_pages": self.scheduler.pool.available,
        }

    @property
    def warming(self) -> bool:
        """Programs are still being compiled."""
        return self._warm_up is not None

    def _fit_steps(self, warm_up: WarmUp) -> None:
        """Plans steps that fit what is compiled: a longer prompt goes in chunks."""
        budget = min(warm_up.token_budget, self._limits.max_num_batched_tokens)
        if budget != self.scheduler.limits.max_num_batched_tokens:
            self.scheduler.limits = replace(self._limits, max_num_batched_tokens=budget)

    def grow(self, post: Post) -> None:
        """Takes what has been compiled, between two steps; never waits for it."""
        warm_up = self._warm_up
        if warm_up is None:
            return
        warm_up.adopt()
        self._fit_steps(warm_up)
        if warm_up.whole:
            self._end_warm_up()
            self.info = self.info._replace(executables=tuple(warm_up.compile_seconds))
            post(Warmed(self.info))

    def _end_warm_up(self) -> None:
        if self._warm_up is not None:
            self._warm_up.stop()
            self._warm_up = None
            self._on_warm()

    @property
    def idle(self) -> bool:
        return self._in_flight is None and not self.scheduler.has_unfinished

    def run(self, inbox: Inbox, post: Post) -> None:
        """Serves until `Shutdown`, or until a `Drain` is done. A failure is posted as `Died` and raised again."""
        try:
            while not self._stopped:
                self.grow(post)
                self._receive(inbox, post)
                outputs = None if self.idle else self.step()
                self._post_outputs(outputs, post)
                if self.idle:
                    self.scheduler.check_idle()
                    if self._draining:
                        post(Drained())
                        return
        except BaseException as error:
            post(Died(f"{type(error).__name__}: {error}", traceback.format_exc()))
            raise
        finally:
            self._end_warm_up()

    def _receive(self, inbox: Inbox, post: Post) -> None:
        """Takes the waiting messages, only so many where sequences are running (`MESSAGES_A_STEP`); waits for one when
        there is nothing to compute."""
        block = self.idle and not self._draining
        left = math.inf if self.idle else MESSAGES_A_STEP
        if block:
            self._clock.pause()
        while left > 0 and not self._stopped:
            try:
                message = inbox.get(block, _WARM_UP_SECONDS if self.warming else None)
            except queue.Empty:
                return
            self._handle(message, post)
            left -= message_weight(message)
            block = False

    def _handle(self, message: Any, post: Post) -> None:
        if isinstance(message, Submit):
            self._submit(message, post)
        elif isinstance(message, Abort):
            self.scheduler.abort(message.request_id, message.index)
        elif isinstance(message, TellExpertLoad):
            post(ExpertLoad() if self._expert_loads is None else self._expert_loads.now())
        elif isinstance(message, Drain):
            self._draining = True
        elif isinstance(message, Shutdown):
            self._stopped = True
        else:
            raise TypeError(f"the engine does not know the message {message!r}")

    def _submit(self, submit: Submit, post: Post) -> None:
        if self._draining:
            post(Rejected(submit.request_id, "draining", "the engine is draining and takes no new requests"))
            return
        try:
            self.scheduler.add(submit)
        except DuplicateRequest as error:
            post(Rejected(submit.request_id, "duplicate", str(error)))
        except InvalidRequest as error:
            post(Rejected(submit.request_id, "invalid", str(error)))

    def _post_outputs(self, outputs: StepOutputs | None, post: Post) -> None:
        ended: list[SequenceOutput] = self.scheduler.take_ended()
        if outputs is None and not ended:
            return
        stats = self.scheduler.refresh_stats()
        stats.compilations_after_ready = self.runner.compilations
        stats.padded_tokens = self.runner.padded_tokens
        sequences = ended + (outputs.sequences if outputs is not None else [])
        prompts = outputs.prompts if outputs is not None else []
        loads = self._expert_loads
        load = None if loads is None else loads.report(idle=self.idle)
        post(StepOutputs(sequences, prompts, stats.copy(), self._clock.times, load))


def message_weight(message: Any) -> int:
    """What it counts for of `MESSAGES_A_STEP`."""
    return 1 + len(message.prompt_token_ids) // _TOKENS_A_MESSAGE if isinstance(message, Submit) else 1


def _new_pages(row: PlanRow) -> int:
    """Pages that a row brings into its slot's page tables."""
    if row.admission is None:
        return sum(write.page > 0 for write in row.writes)
    return sum(page > 0 for table in row.admission.tables for page in table)
