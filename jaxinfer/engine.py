"""The engine's loop: one thread, one step in flight.

While the device computes step N the host plans and dispatches N + 1, then takes N's tokens. Where rows follow a grammar
what draws N + 1's tokens is dispatched after that: N's tokens say what may come next, and the masks for it are made
while the device computes N + 1's forward pass. Pages may be freed while a step that writes to them is still in flight:
steps run in dispatch order on donated KV, so whoever gets the pages next writes later. In `serve` the loop runs in a
process of its own, in `LLM` and in tests in a thread; the code is the same.
"""

from __future__ import annotations

import math
import queue
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any, NamedTuple

from jaxinfer.constraints.guide import Guide
from jaxinfer.constraints.matching import ConstraintError
from jaxinfer.engine_parts import ExpertLoads, Grammars, Inbox, LateStep, PendingStep, StepRunner, WarmUp
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
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.scheduler import DuplicateRequest, Scheduler
from jaxinfer.scheduling.step_plan import PlanRow, StepPlan
from jaxinfer.step_clock import DISPATCH, MASKS, MESSAGES, SCHEDULE, UPDATE, StepClock

Post = Callable[[Any], None]

# What is taken from the inbox between two steps while sequences wait for the next one: messages, each of a few
# microseconds, and as many again for a prompt of so many tokens. A client's thousand prompts hold up nobody's tokens.
MESSAGES_A_STEP, _TOKENS_A_MESSAGE = 256, 256

_WARM_UP_SECONDS = 0.05  # how often an idle engine looks for programs that were compiled meanwhile
_GRAMMAR_SECONDS = 0.001  # the same for grammars, while requests wait for them


class InFlight(NamedTuple):
    """A dispatched step. padded: tokens it computes for nothing. launched: see StepClock. late: it has yet to draw."""

    plan: StepPlan
    pending: PendingStep
    padded: int
    launched: float
    late: LateStep | None = None


class EngineLoop:
    """Turns messages into steps. `info` is what the engine settled on; `check` turns on integrity checks every step.

    warm_up: what goes on being compiled; until it is whole, steps have as many tokens as it says. on_warm is called
    when it is, or when the loop ends before. grammars: without them constraints are refused. expert_loads: of a model
    with experts.
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
        grammars: Grammars | None = None,
        expert_loads: ExpertLoads | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.runner = runner
        self.info = info
        self._check = check
        self._warm_up = warm_up
        self._on_warm = on_warm
        self._matching = None if grammars is None else grammars.matching
        self._late_runner = None if grammars is None else grammars.runner
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
        if launched is not None and launched.late is not None:
            outputs = self._draw(launched.plan, launched.late, outputs or StepOutputs())
        self._in_flight = launched
        if self._check:
            self.scheduler.check_integrity()
        if launched is None and done is None and self.scheduler.has_unfinished:
            raise RuntimeError("the scheduler has unfinished requests but plans nothing for them")
        return outputs

    def _dispatch(self, plan: StepPlan, before: InFlight | None) -> InFlight:
        padded = self.runner.padded_tokens
        self._planned = plan, time.monotonic()
        late = None
        if self._late_runner is not None and next(self.scheduler.guided(plan), None) is not None:
            pending: PendingStep = (late := self._late_runner.dispatch_late(plan))
        else:
            pending = self.runner.dispatch(plan)
        launched = self._clock.launch(starved=before is not None and before.pending.ready)
        return InFlight(plan, pending, self.runner.padded_tokens - padded, launched, late)

    def _take(self, done: InFlight) -> StepOutputs:
        result = done.pending.result()
        seconds = self._clock.finish(done.launched)
        outputs = self.scheduler.update(done.plan, result, seconds, done.padded)
        self._clock.lap(UPDATE)
        return outputs

    def _draw(self, plan: StepPlan, late: LateStep, outputs: StepOutputs) -> StepOutputs:
        """Lets a step draw that was dispatched without, now that all tokens before are known; adds what grammars say
        without drawing. A row whose sequence has ended meanwhile may draw anything."""
        assert self._matching is not None
        guided: list[tuple[int, Sequence, Guide]] = []
        for row, sequence in self.scheduler.guided(plan):
            assert isinstance(sequence.guide, Guide)
            guided.append((row, sequence, sequence.guide))
        masks = self._matching.masks([(row, guide) for row, _, guide in guided], *late.mask_shape)
        self._clock.lap(MASKS)
        late.draw(masks)
        self._clock.lap(DISPATCH)
        for _, sequence, guide in guided:
            if sequence.finished:
                continue  # with another one of its request
            if not guide.error and (jumped := self.scheduler.jump(sequence)) is not None:
                outputs.sequences.append(jumped)
            if guide.error:
                outputs.sequences += self.scheduler.misled(sequence)
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
    def waiting_for_grammars(self) -> bool:
        """Requests were taken whose grammars are being compiled."""
        return self._matching is not None and self._matching.waiting > 0

    @property
    def idle(self) -> bool:
        return self._in_flight is None and not self.scheduler.has_unfinished

    def run(self, inbox: Inbox, post: Post) -> None:
        """Serves until `Shutdown`, or until a `Drain` is done. A failure is posted as `Died` and raised again."""
        try:
            while not self._stopped:
                self.grow(post)
                self._receive(inbox, post)
                self.admit_compiled(post)
                outputs = self._idle_news() if self.idle else self.step()
                self._post_outputs(outputs, post)
                if self.idle:
                    self.scheduler.check_idle()
                    if self._draining and not self.waiting_for_grammars:
                        post(Drained())
                        return
        except BaseException as error:
            post(Died(f"{type(error).__name__}: {error}", traceback.format_exc()))
            raise
        finally:
            self._end_warm_up()
            if self._matching is not None:
                self._matching.close()

    def _idle_news(self) -> StepOutputs | None:
        """Pins end also while nothing runs, which nobody waits for, but is to be told."""
        return StepOutputs() if self.scheduler.pins.expire() else None

    def _receive(self, inbox: Inbox, post: Post) -> None:
        """Takes the waiting messages, only so many where sequences are running (`MESSAGES_A_STEP`); waits for one when
        there is nothing to compute."""
        waiting = self.waiting_for_grammars
        block = self.idle and (waiting or not self._draining)
        timeout = _GRAMMAR_SECONDS if waiting else _WARM_UP_SECONDS if self.warming else self.scheduler.pins.next_end
        left = math.inf if self.idle else MESSAGES_A_STEP
        if block:
            self._clock.pause()
        while left > 0 and not self._stopped:
            try:
                message = inbox.get(block, timeout)
            except queue.Empty:
                return
            self._handle(message, post)
            left -= message_weight(message)
            block = False

    def _handle(self, message: Any, post: Post) -> None:
        if isinstance(message, Submit):
            self._submit(message, post)
        elif isinstance(message, Abort):
            if message.index is None:  # nothing was told of a request that waits, so no stop string was found in it
                self._release(message.request_id, post)
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
        matching = self._matching
        if matching is not None and matching.holds(submit.request_id):
            post(Rejected(submit.request_id, "duplicate", f"request id {submit.request_id!r} is in use"))
        elif not submit.guided:
            self._add(submit, (), post)
        elif matching is None:
            post(Rejected(submit.request_id, "invalid", "this engine has no structured output"))
        else:
            try:
                guides = matching.begin(submit)
            except ConstraintError as error:
                post(Rejected(submit.request_id, "invalid", str(error)))
                return
            if guides is not None:
                self._add(submit, guides, post)

    def _add(self, submit: Submit, guides: Collection[Guide], post: Post) -> None:
        try:
            self.scheduler.add(submit, guides)
        except DuplicateRequest as error:
            post(Rejected(submit.request_id, "duplicate", str(error)))
        except InvalidRequest as error:
            post(Rejected(submit.request_id, "invalid", str(error)))

    def admit_compiled(self, post: Post) -> None:
        """Lets requests in whose grammars were compiled since the last call; never waits for one."""
        if self._matching is None or not self._matching.waiting:
            return
        for submit, found in self._matching.take():
            if isinstance(found, ConstraintError):
                post(Rejected(submit.request_id, "invalid", str(found)))
            else:
                self._add(submit, found, post)

    def _release(self, request_id: str, post: Post) -> None:
        """Lets a request in without its grammar, since it ends at once."""
        submit = None if self._matching is None else self._matching.release(request_id)
        if submit is not None:
            self._add(submit, (), post)

    def _post_outputs(self, outputs: StepOutputs | None, post: Post) -> None:
        ended: list[SequenceOutput] = self.scheduler.take_ended()
        if outputs is None and not ended:
            return
        stats = self.scheduler.refresh_stats()
        stats.compilations_after_ready = self.runner.compilations
        stats.padded_tokens = self.runner.padded_tokens
        if self._matching is not None:
            stats.waiting += self._matching.waiting
            stats.constrained_requests = self._matching.requests
            stats.constraint_seconds = self._matching.compile_seconds
        sequences = ended + (outputs.sequences if outputs is not None else [])
        prompts = outputs.prompts if outputs is not None else []
        loads = self._expert_loads
        load = None if loads is None else loads.report(idle=self.idle)
        pins = self.scheduler.pins.report(idle=self.idle)
        post(StepOutputs(sequences, prompts, stats.copy(), self._clock.times, load, pins))


def message_weight(message: Any) -> int:
    """What it counts for of `MESSAGES_A_STEP`."""
    return 1 + len(message.prompt_token_ids) // _TOKENS_A_MESSAGE if isinstance(message, Submit) else 1


def _new_pages(row: PlanRow) -> int:
    """Pages that a row brings into its slot's page tables."""
    if row.admission is None:
        return sum(write.page > 0 for write in row.writes)
    return sum(page > 0 for table in row.admission.tables for page in table)
