"""The scheduler: a token budget, pages, and sequences whose num_computed chases num_tokens.

There are no phases. A prompt is a sequence that is far behind, a decode row one that is one token behind; chunked
prefill, prefix hits, preemption by recompute and restarts all are changes of num_computed. One step is in flight while
the next is planned: `schedule` advances num_computed and counts the token to come as pending, `update` brings the
token one step later.
"""

from __future__ import annotations

import time
from bisect import insort
from dataclasses import dataclass

from jaxinfer.messages import EngineStats, SequenceAccount, SequenceOutput, StepOutputs, Submit
from jaxinfer.sampling_params import InvalidRequest
from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.plan import Admission, PlanRow, StepPlan, StepResult
from jaxinfer.scheduling.request import Request, Sequence
from jaxinfer.scheduling.results import prompt_scores, token_logprobs


@dataclass(frozen=True)
class SchedulerLimits:
    """Sizes the scheduler works within. `longrope_border`: length (tokens) beyond which RoPE's long factors apply."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()
    longrope_border: int | None = None
    priority_ageing_seconds: float = 30.0
    enable_prefix_caching: bool = True


class DuplicateRequest(ValueError):
    """A live request has this id already."""


class Scheduler:
    """Owns every live request. Not thread-safe: the engine's one thread calls it."""

    def __init__(self, limits: SchedulerLimits, pool: PagePool) -> None:
        self.limits = limits
        self.pool = pool
        self.kv = KVManager(pool, enable_prefix_caching=limits.enable_prefix_caching)
        self.stats = EngineStats(total_pages=pool.usable_pages)
        self._requests: dict[str, Request] = {}
        self._running: list[Sequence] = []  # by order
        self._waiting: list[Sequence] = []  # by order
        self._slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._arrivals = 0
        self._ended: list[SequenceOutput] = []  # what ended outside `update`, for the next outputs

    # -- requests ---------------------------------------------------------------------------------------------------

    def add(self, submit: Submit) -> None:
        """Takes a request. Raises DuplicateRequest, or InvalidRequest when it can never be served."""
        if submit.request_id in self._requests:
            raise DuplicateRequest(f"request id {submit.request_id!r} is in use")
        params, prompt_len, limits = submit.params, len(submit.prompt_token_ids), self.limits
        if not prompt_len:
            raise InvalidRequest("prompt", "", "it must hold at least one token")
        room = limits.max_model_len - prompt_len
        if room < 1:
            raise InvalidRequest(
                "prompt", f"{prompt_len} tokens", f"at most {limits.max_model_len - 1} fit the context"
            )
        if params.max_tokens is not None and params.max_tokens > room:
            raise InvalidRequest(
                "max_tokens",
                params.max_tokens,
                f"with a prompt of {prompt_len} tokens at most {room} fit the context of {limits.max_model_len}",
            )
        max_total = prompt_len + (room if params.max_tokens is None else params.max_tokens)
        pages = self.kv.pages_for(max_total - 1)  # the last token's KV is never needed
        if pages > self.pool.usable_pages:
            raise InvalidRequest(
                "max_tokens",
                params.max_tokens,
                f"prompt and output need {pages} pages of {self.pool.page_size} tokens, the pool has "
                f"{self.pool.usable_pages}",
            )
        stop_ids = set(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids.update(limits.eos_token_ids)
        if params.min_tokens and params.allowed_token_ids is not None:
            left = set(params.allowed_token_ids) - stop_ids - set(params.bad_token_ids)
            if not left:
                raise InvalidRequest(
                    "allowed_token_ids",
                    params.allowed_token_ids,
                    f"all of them end the text, so min_tokens {params.min_tokens} cannot be reached",
                )
        order = submit.arrival + submit.priority * limits.priority_ageing_seconds
        request = Request(submit, (order, self._arrivals), frozenset(stop_ids), max_total)
        self._arrivals += 1
        self._requests[submit.request_id] = request
        self.stats.prompt_tokens += prompt_len
        for sequence in request.sequences:
            self._enqueue(sequence)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one of its sequences; unknown and finished ones are left alone."""
        request = self._requests.get(request_id)
        if request is None:
            return
        for sequence in request.sequences:
            if not sequence.finished and index in (None, sequence.index):
                account = self._finish(sequence)
                self._ended.append(
                    SequenceOutput(request_id, sequence.index, -1, None, "abort", None, sequence.cached_tokens, account)
                )

    @property
    def has_unfinished(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def take_ended(self) -> list[SequenceOutput]:
        """Ends that no step will report (aborts since the last call)."""
        ended, self._ended = self._ended, []
        return ended

    # -- planning ---------------------------------------------------------------------------------------------------

    def schedule(self) -> StepPlan:
        """Plans the next step and takes every page it may write."""
        rows: list[PlanRow] = []
        budget = self.limits.max_num_batched_tokens
        behind: list[Sequence] = []  # more than one token: served after the rows that need one
        planned: set[Sequence] = set()
        for sequence in list(self._running):
            want = sequence.num_tokens - sequence.num_computed
            if want > 1 or sequence.needs_admission or sequence.regime != self._regime(sequence):
                behind.append(sequence)
            elif want == 1 and budget and sequence.num_tokens < sequence.max_total and sequence.slot >= 0:
                if sequence.sync and sequence.num_pending:
                    continue
                if self._grow(sequence, sequence.num_tokens, planned):
                    rows.append(self._row(sequence, 1))
                    planned.add(sequence)
                    budget -= 1
        for sequence in behind:
            if budget and sequence.slot >= 0 and self._catch_up(sequence, budget, rows, planned):
                budget -= rows[-1].length
        if budget and self._waiting and self._slots:
            budget = self._admit_waiting(budget, rows, behind)
        used = self.limits.max_num_batched_tokens - budget
        self.stats.scheduled_tokens += used
        return StepPlan(rows, used)

    def _regime(self, sequence: Sequence) -> int:
        border = self.limits.longrope_border
        return int(border is not None and sequence.num_tokens > border)

    def _catch_up(self, sequence: Sequence, budget: int, rows: list[PlanRow], planned: set[Sequence]) -> bool:
        """Plans a chunk of a running sequence that is more than one token behind, or must start again."""
        if sequence.regime != self._regime(sequence):
            if sequence.num_pending:
                return False  # its newest token is needed as an input; it is here after the next update
            self.kv.release(sequence)
            sequence.regime = self._regime(sequence)
            sequence.needs_admission = True
            sequence.node = self.kv.root(sequence)
        if sequence.num_tokens >= sequence.max_total:
            return False
        length = min(sequence.num_tokens - sequence.num_computed, budget)
        if not self._grow(sequence, sequence.num_computed + length, planned):
            return False
        rows.append(self._row(sequence, length))
        planned.add(sequence)
        return True

    def _grow(self, sequence: Sequence, num_tokens: int, planned: set[Sequence]) -> bool:
        """Makes room for `num_tokens` tokens, preempting whoever comes last; False when the sequence must wait.

        A row that is already in the plan is never preempted. When only the sequence itself is left it gives up its own
        pages if others run, since keeping them while waiting could block everyone.
        """
        if num_tokens <= len(sequence.pages) * self.pool.page_size:
            return True
        while self.kv.shortfall(sequence, num_tokens):
            victim = self._running[-1]
            if victim is not sequence and victim in planned:
                others = [s for s in self._running if s not in planned]
                victim = others[-1]
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to wait; its tokens stay, its KV is recomputed."""
        self.kv.release(sequence)
        self._leave_slot(sequence)
        self._running.remove(sequence)
        sequence.preemptions += 1
        self.stats.preemptions += 1
        self._enqueue(sequence)

    def _admit_waiting(self, budget: int, rows: list[PlanRow], behind: list[Sequence]) -> int:
        """Moves waiting sequences into slots, in order, until budget, slots or pages run out.

        A prompt enters only when all of it fits beside what the running ones still need for theirs and a page for
        every fourth of them to grow into; else it would soon be preempted again.
        """
        admitted: list[Sequence] = []
        pages_for = self.kv.pages_for
        reserved = sum(max(0, pages_for(s.num_tokens) - len(s.pages)) for s in behind if s.slot >= 0)
        if self._running:
            reserved += (len(self._running) + 3) // 4
        for sequence in self._waiting:
            if not budget or not self._slots:
                break
            if not self._may_start(sequence):
                continue
            sequence.regime = self._regime(sequence)
            hit, node = self.kv.find_prefix(sequence)
            # Hits that nobody owns now stop being available once taken, so they count against the room for the rest.
            taken = sum(1 for page in hit if self.pool.is_available(page))
            missing = pages_for(sequence.num_tokens) - len(hit)
            if missing + reserved > self.pool.available - taken:
                break  # in order: nobody overtakes, so that a long prompt is not starved by short ones
            self.kv.admit(sequence, hit, node)
            if sequence.preemptions == 0:
                sequence.cached_tokens = sequence.num_computed
                self.stats.prefix_queries += sequence.num_tokens
                self.stats.prefix_hits += sequence.num_computed
                sequence.started = time.monotonic()
            sequence.slot = self._slots.pop()
            length = min(sequence.num_tokens - sequence.num_computed, budget)
            rows.append(self._row(sequence, length))
            budget -= length
            reserved += pages_for(sequence.num_tokens - 1) - len(sequence.pages)
            admitted.append(sequence)
        for sequence in admitted:
            self._waiting.remove(sequence)
            insort(self._running, sequence, key=_order)
        return budget

    def _may_start(self, sequence: Sequence) -> bool:
        if sequence.num_pending:
            return False  # preempted with a token in flight: its id is known after the next update
        leader = sequence.request.sequences[0]
        if sequence is leader or leader.finished or leader.preemptions or not self.kv.caching:
            return True
        if sequence.request.params.prompt_logprobs is not None:
            return True
        # The n - 1 siblings wait until the first sequence has published the prompt's full pages.
        return leader.committed >= (sequence.prompt_len - 1) // self.pool.page_size

    def _row(self, sequence: Sequence, length: int) -> PlanRow:
        start = sequence.num_computed
        end = start + length
        if start < sequence.prompt_len:
            sequence.chunks += 1
        fresh = sequence.needs_admission
        pages = self.kv.extend(sequence, end)
        admission = self._admission(sequence) if fresh else None
        sequence.num_computed = end
        samples = end == sequence.num_tokens
        known = len(sequence.token_ids)
        token_ids = tuple(sequence.token_ids[start:end]) if start < known else ()
        request = sequence.request
        targets: tuple[int, ...] = ()
        if request.params.prompt_logprobs is not None and not sequence.index and start < sequence.prompt_len - 1:
            targets = tuple(sequence.token_ids[start + 1 : min(end + 1, sequence.prompt_len)])
        if samples:
            sequence.num_pending += 1
            sequence.num_tokens += 1
        return PlanRow(
            request.request_id,
            sequence.index,
            sequence.epoch,
            sequence.residency,
            sequence.slot,
            start,
            length,
            samples,
            token_ids,
            () if fresh else tuple(pages),
            admission,
            targets,
        )

    def _admission(self, sequence: Sequence) -> Admission:
        sequence.needs_admission = False
        request = sequence.request
        start = sequence.num_computed
        return Admission(
            start,
            sequence.prompt_len,
            tuple(sequence.pages),
            sequence.regime,
            request.params,
            request.seed,
            sequence.index,
            tuple(sorted(request.stop_ids)) if request.params.min_tokens else (),
            tuple(sequence.token_ids[:start]) if request.params.has_penalties else (),
        )

    # -- results ----------------------------------------------------------------------------------------------------

    def update(self, plan: StepPlan, result: StepResult, seconds: float = 0.0, padded: int = 0) -> StepOutputs:
        """Takes the results of a dispatched plan: publishes pages, appends tokens, ends what is finished.

        seconds, padded: what the step took of the device, and tokens it computed for nothing; shared by its rows.
        """
        outputs = StepOutputs()
        seconds_each, padded_each = seconds / plan.num_tokens, padded / plan.num_tokens
        offset = 0
        for i, row in enumerate(plan.rows):
            length = row.length
            start, offset = offset, offset + length
            request = self._requests.get(row.request_id)
            if request is None:
                continue
            sequence = request.sequences[row.index]
            if sequence.epoch != row.epoch:
                continue
            self.kv.commit(sequence, row)
            sequence.computed_tokens += length
            sequence.device_seconds += seconds_each * length
            sequence.padded_tokens += padded_each * length
            if row.targets:
                outputs.prompts.append(prompt_scores(row, start, request.params, result))
            if row.samples:
                outputs.sequences.append(self._take_token(sequence, i, result))
        self.stats.steps += 1
        return outputs

    def _take_token(self, sequence: Sequence, i: int, result: StepResult) -> SequenceOutput:
        token = result.tokens[i]
        sequence.token_ids.append(token)
        sequence.num_pending -= 1
        self.stats.generated_tokens += 1
        reason: str | None = None
        stop_token: int | None = None
        total = len(sequence.token_ids)
        request = sequence.request
        if token in sequence.stop_ids and total > sequence.min_total:
            reason = "stop"
            if token in request.params.stop_token_ids:
                stop_token = token
        elif total >= sequence.max_total:
            reason = "length"
        account = self._finish(sequence) if reason is not None else None
        logprobs = None if request.params.logprobs is None else token_logprobs(i, request.params.logprobs, result)
        return SequenceOutput(
            request.request_id, sequence.index, token, logprobs, reason, stop_token, sequence.cached_tokens, account
        )

    def _finish(self, sequence: Sequence) -> SequenceAccount:
        """Ends a live sequence wherever it is; what it took."""
        account = sequence.account
        sequence.finished = True
        sequence.epoch += 1
        self.kv.release(sequence)
        if sequence.slot >= 0:
            self._leave_slot(sequence)
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        if sequence.request.finished:
            del self._requests[sequence.request.request_id]
        return account

    def _leave_slot(self, sequence: Sequence) -> None:
        self._slots.append(sequence.slot)
        sequence.slot = -1
        sequence.needs_admission = True

    def _enqueue(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=_order)

    # -- books ------------------------------------------------------------------------------------------------------

    def refresh_stats(self) -> EngineStats:
        stats = self.stats
        stats.running, stats.waiting = len(self._running), len(self._waiting)
        stats.free_pages, stats.cached_pages = self.pool.available, self.pool.num_cached
        return stats

    def check_integrity(self, plan: StepPlan | None = None) -> None:
        """Raises IntegrityError unless pages, slots and lists add up, and the plan writes only what it owns alone."""
        live = [s for r in self._requests.values() for s in r.sequences if not s.finished]
        writes = []
        for row in plan.rows if plan is not None else ():
            pages = self._requests[row.request_id].sequences[row.index].pages
            size = self.pool.page_size
            writes += pages[row.start // size : (row.start + row.length - 1) // size + 1]
        self.pool.check_integrity([s.pages for s in live], writes)
        if sorted(map(id, live)) != sorted(map(id, self._running + self._waiting)):
            raise AssertionError("a live sequence is in no list, or in two")
        slots = [s.slot for s in self._running]
        if sorted(slots + self._slots) != list(range(self.limits.max_num_seqs)):
            raise AssertionError(f"slots do not add up: running {slots}, free {self._slots}")
        if any(s.slot != -1 or s.pages for s in self._waiting):
            raise AssertionError("a waiting sequence holds a slot or pages")


def _order(sequence: Sequence) -> tuple[float, int, int]:
    return sequence.order
