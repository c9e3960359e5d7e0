"""The scheduler: a token budget, pages, and sequences whose num_computed chases num_tokens.

There are no phases. A prompt is a sequence that is far behind, a decode row one that is one token behind; chunked
prefill, prefix hits, preemption by recompute and restarts all are changes of num_computed. One step is in flight while
the next is planned: `schedule` advances num_computed and counts the token to come as pending, `update` brings the
token one step later.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from jaxinfer.messages import SequenceOutput, StepOutputs, TokenLogprobs
from jaxinfer.scheduling.books import Books, DuplicateRequest
from jaxinfer.scheduling.limits import SchedulerLimits
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.results import prompt_scores, token_logprobs
from jaxinfer.scheduling.rows import plan_row
from jaxinfer.scheduling.step_plan import PlanRow, StepPlan, StepResult
from jaxinfer.scheduling.waiting import order_of

__all__ = ["DuplicateRequest", "Scheduler", "SchedulerLimits"]

LOOK_AHEAD = 2048  # tokens in a step: about 0.1 ms
LOOK_AT = 4  # tenants: who is served next changes with every step


@dataclass(slots=True)
class _Step:
    """A step in the making. planned: sequences with a row; none of them is preempted any more."""

    budget: int  # tokens left
    rows: list[PlanRow] = field(default_factory=list)
    planned: set[Sequence] = field(default_factory=set)

    def add(self, sequence: Sequence, row: PlanRow) -> None:
        self.rows.append(row)
        self.planned.add(sequence)
        self.budget -= row.length


class Scheduler(Books):
    """Owns every live request. Not thread-safe: the engine's one thread calls it."""

    # -- planning ------------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Plans the next step and takes every page it may write."""
        if self.pins:
            self.pins.expire()
        if self._fairness.contended:
            self._make_way()
        step = _Step(self.limits.max_num_batched_tokens)
        prefilling: list[Sequence] = []  # more than one token: served after the rows that need one
        draws, kv, variants = self.limits.draws, self.kv, self.limits.longrope_border is not None
        for sequence in list(self._running):
            num_tokens = sequence.num_tokens
            want = num_tokens - sequence.num_computed
            if want > 1 or sequence.needs_admission or (variants and self._must_restart(sequence)):
                prefilling.append(sequence)
            elif want == 1 and step.budget and num_tokens < sequence.max_total and sequence.slot >= 0:
                if sequence.sync and sequence.num_pending:
                    continue
                roomy = num_tokens <= sequence.capacity and sequence.num_computed < sequence.leaves_at
                if roomy or self._grow(sequence, num_tokens, step):
                    step.add(sequence, plan_row(kv, sequence, 1, draws))
        self._fill(step, prefilling)
        self._look_ahead()
        used = self.limits.max_num_batched_tokens - step.budget
        self.stats.scheduled_tokens += used
        return StepPlan(step.rows, used)

    def _fill(self, step: _Step, prefilling: list[Sequence]) -> None:
        """Fills the rest of a step: with those that are prefilling, then with those that wait, until budget, slots or
        pages run out. The fairness policy says whose turn it is.

        A prompt enters only when all of it fits beside what the running ones still need for theirs and a page for
        every fourth of them to grow into; else it would soon be preempted again.
        """
        if not prefilling and not (self._slots and self._tenants.num_waiting):
            return
        turns, usable = self._fairness.turns(prefilling), self.pool.usable_pages
        reserved: int | None = None  # pages that are spoken for
        while step.budget and (next_turn := turns.fill()) is not None:
            sequence, waits = next_turn
            held = sequence.held
            if not waits:
                if sequence.slot >= 0 and self._catch_up(sequence, step) and reserved is not None:
                    reserved = max(0, reserved - max(0, sequence.held - held))
            elif not self._slots:
                turns.close(all_tenants=True)
            elif not self._may_start(sequence):
                turns.skip()
            else:
                reserved = self.reserved(prefilling) if reserved is None else reserved
                more = self._admit(sequence, step, reserved)
                if more is None:
                    turns.close(all_tenants=self._fairness.all_wait(sequence, usable))
                else:
                    reserved += more

    def _look_ahead(self) -> None:
        """Looks up some of the prefixes of who comes next, so that the step that admits a long prompt need not look
        up all of it. Decides nothing."""
        left = max(1, LOOK_AHEAD // self.pool.page_size)
        for sequence in self._fairness.first_in_line(LOOK_AT):
            if self._may_start(sequence):
                sequence.rope_variant = self._rope_variant(sequence)
                known = 0 if sequence.hit is None else sequence.hit.known
                left -= max(0, self.kv.find_prefix(sequence, new=left).known - known)
                if left <= 0:
                    return

    def _rope_variant(self, sequence: Sequence) -> int:
        border = self.limits.longrope_border
        return int(border is not None and sequence.num_tokens > border)

    def _must_restart(self, sequence: Sequence) -> bool:
        return sequence.rope_variant != self._rope_variant(sequence)

    def _catch_up(self, sequence: Sequence, step: _Step) -> bool:
        """Plans a chunk of a running sequence that is more than one token behind, or must start again."""
        if sequence.num_pending:
            return False  # its newest token is needed as an input, or nobody knows how many there are: after the update
        if self._must_restart(sequence):
            self.kv.release(sequence)
            sequence.rope_variant = self._rope_variant(sequence)
            sequence.needs_admission = True
        if sequence.num_tokens >= sequence.max_total:
            return False
        length = min(sequence.num_tokens - sequence.num_computed, step.budget)
        if not self._grow(sequence, sequence.num_computed + length, step):
            return False
        step.add(sequence, plan_row(self.kv, sequence, length, self.limits.draws))
        return True

    def _grow(self, sequence: Sequence, num_tokens: int, step: _Step) -> bool:
        """Makes room for `num_tokens` tokens, preempting whom the fairness policy names; False when the sequence must
        wait.

        A row that is already in the plan is never preempted. When only the sequence itself is left it gives up its own
        pages if others run, since keeping them while waiting could block everyone.
        """
        if sequence.num_computed >= sequence.leaves_at:
            self.kv.leave_behind(sequence)
        if num_tokens <= sequence.capacity:
            return True
        while self.kv.shortfall(sequence, num_tokens):
            victim = self._fairness.victim(self._running, step.planned)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _make_way(self) -> None:
        for sequence in self._fairness.make_way(self, self._may_start):
            self._preempt(sequence)

    def reserved(self, prefilling: Iterable[Sequence]) -> int:
        """Pages that running sequences are about to need."""
        found = sum(self.kv.lacks(s, s.num_tokens) for s in prefilling if s.slot >= 0)
        return found + self.headroom(len(self._running))

    def headroom(self, running: int) -> int:
        """Pages left free for so many running sequences to grow into."""
        return (running + 3) // 4 * self.kv.shape.each

    def missing(self, sequence: Sequence) -> int:
        """The available pages that a waiting sequence's admission takes: those without a prefix hit, and hits that
        nobody owns now."""
        sequence.rope_variant = self._rope_variant(sequence)
        return self.kv.missing(sequence)

    def _admit(self, sequence: Sequence, step: _Step, reserved: int) -> int | None:
        """Moves a waiting sequence into a slot: the pages that it still needs, or None when it does not fit."""
        if self.missing(sequence) + reserved > self.pool.available:
            return None
        assert sequence.hit is not None
        self.kv.admit(sequence, sequence.hit)
        if sequence.preemptions == 0:
            sequence.cached_tokens = sequence.num_computed
            self.stats.prefix_queries += sequence.num_tokens
            self.stats.prefix_hits += sequence.num_computed
            sequence.started = time.monotonic()
        sequence.slot = self._slots.pop()
        sequence.request.tenant.running += 1
        self._tenants.dequeue(sequence)
        insort(self._running, sequence, key=order_of)
        self._unpark(sequence.request)  # a hit may hold the whole prompt
        length = min(sequence.num_tokens - sequence.num_computed, step.budget)
        step.add(sequence, plan_row(self.kv, sequence, length, self.limits.draws))
        return self.kv.lacks(sequence, sequence.num_tokens - 1)

    # -- results -------------------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan, result: StepResult, seconds: float = 0.0, padded: int = 0) -> StepOutputs:
        """Takes the results of a dispatched plan: publishes pages, appends tokens, ends what is finished.

        seconds, padded: what the step took of the device, and tokens it computed for nothing; shared by its rows.
        """
        outputs = StepOutputs()
        seconds_each, padded_each = seconds / plan.num_tokens, padded / plan.num_tokens
        offset = 0
        page_size = self.pool.page_size
        for i, (row, tokens) in enumerate(zip(plan.rows, result.tokens, strict=True)):
            length = row.length
            start, offset = offset, offset + length
            request = self._requests.get(row.request_id)
            if request is None:
                continue
            sequence = request.sequences[row.index]
            if sequence.run_epoch != row.run_epoch:
                continue
            if row.start + length >= (sequence.committed + 1) * page_size:
                self.kv.commit(sequence, row, len(tokens))
            if request.parked:
                self._unpark(request)
            sequence.computed_tokens += length
            sequence.device_seconds += seconds_each * length
            sequence.padded_tokens += padded_each * length
            if row.targets:
                outputs.prompts.append(prompt_scores(row, start, request.params, result))
            if row.draws:
                if tokens and tokens[-1] < 0:
                    outputs.sequences += self._fail(sequence)
                elif sequence.foretold:
                    sequence.foretold = False
                elif (output := self._take_tokens(sequence, i, row, tokens, result)) is not None:
                    outputs.sequences.append(output)
                if sequence.guide is not None and sequence.guide.error:
                    outputs.sequences += self.misled(sequence)
        self.stats.steps += 1
        return outputs

    def _take_tokens(
        self, sequence: Sequence, i: int, row: PlanRow, tokens: list[int], result: StepResult
    ) -> SequenceOutput | None:
        """Takes what row `i` drew of a live sequence, up to what ends it; None where there is nothing to tell."""
        count, draws = len(tokens), row.draws
        sequence.num_pending -= draws
        if count != draws:
            sequence.num_tokens -= draws - count
            if not tokens:
                if row.kv_epoch == sequence.kv_epoch:
                    sequence.num_computed -= 1  # it draws again
                return None
        accepted, reason, stop_token = self._append(
            sequence, tokens, sequence.num_tokens - sequence.num_pending - count
        )
        wanted = sequence.request.params.logprobs
        logprobs = None if wanted is None else token_logprobs(i, accepted, wanted, result)
        return self._tell(sequence, tokens, accepted, logprobs, reason, stop_token)

    def _append(self, sequence: Sequence, tokens: Iterable[int], total: int) -> tuple[int, str | None, int | None]:
        """Appends tokens up to what ends the sequence: how many, and why and with which token it ends. total: tokens
        that were known before."""
        reason: str | None = None
        stop_token: int | None = None
        taken, guide = sequence.output_ids, sequence.guide
        known = total
        for token in tokens:
            taken.append(token)
            total += 1
            if guide is not None:
                guide.accept(token)
            if token in sequence.stop_ids and total > sequence.min_total:
                reason, stop_token = "stop", token
                break
            if guide is not None and (guide.complete or guide.error):
                reason = None if guide.error else "stop"
                stop_token = token if guide.ends(token) else None
                break
            if total >= sequence.max_total:
                reason = "length"
                break
        if guide is not None and guide.done:
            self._let_go(sequence)
        self.stats.generated_tokens += total - known
        return total - known, reason, stop_token

    def _tell(
        self,
        sequence: Sequence,
        tokens: list[int],
        accepted: int,
        logprobs: tuple[TokenLogprobs, ...] | None,
        reason: str | None,
        stop_token: int | None,
    ) -> SequenceOutput | None:
        """The news of a sequence after `_append`, whose end it takes note of; None where there is nothing to tell."""
        taken, request = sequence.output_ids, sequence.request
        if reason is None and 0 < sequence.told > len(taken) - request.interval:
            return None  # told later
        if sequence.told + accepted == len(taken) and accepted == len(tokens):  # nearly always: what a step has drawn
            new = tuple(tokens)
            sequence.told += accepted
        else:
            new = sequence.tell()
        account = self._finish(sequence) if reason is not None else None
        return SequenceOutput(
            request.request_id,
            sequence.index,
            new,
            logprobs,
            reason,
            stop_token,
            sequence.cached_tokens,
            account,
            "",
            sequence.pinned_tokens,
        )

    # -- grammars ------------------------------------------------------------------------------------------------------

    def guided(self, plan: StepPlan) -> Iterator[tuple[int, Sequence]]:
        """Those of the plan's rows that draw for a live sequence with a guide: their numbers among all that draw, and
        the sequences."""
        if not self._guided:
            return
        place = 0
        for row in plan.rows:
            if not row.draws:
                continue
            request = self._requests.get(row.request_id)
            if request is not None:
                sequence = request.sequences[row.index]
                if sequence.guide is not None and sequence.run_epoch == row.run_epoch:
                    yield place, sequence
            place += 1

    def jump(self, sequence: Sequence) -> SequenceOutput | None:
        """Appends what a sequence's guide forces, where that is more than the token that the step in flight draws for
        it: the next row then has all of them. None where there is nothing to tell.

        A request that wants log-probabilities gets them one by one: each is read from the step that scores it.
        """
        guide = sequence.guide
        assert guide is not None
        if len(guide.forced) < 2 or sequence.num_pending != 1 or sequence.request.params.logprobs is not None:
            return None
        tokens = list(guide.forced)
        accepted, reason, stop_token = self._append(sequence, tokens, sequence.num_known)
        sequence.foretold = True
        sequence.num_pending = 0
        sequence.num_tokens = sequence.num_known
        self.stats.forced_tokens += accepted - 1
        return self._tell(sequence, tokens, accepted, None, reason, stop_token)
