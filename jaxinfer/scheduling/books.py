"""What the scheduler keeps of requests and their sequences: who is alive, who runs, who waits; how they come and go."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Collection

from jaxinfer.messages import NO_LOGITS, NO_TOKEN_LEFT, EngineStats, SequenceAccount, SequenceOutput, Submit
from jaxinfer.scheduling.checks import (
    check_lists,
    check_nothing_left,
    check_tables,
    length_limit,
    pages_written,
    stop_tokens,
)
from jaxinfer.scheduling.fairness import Fairness
from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.limits import SchedulerLimits
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.pins import Pins
from jaxinfer.scheduling.request import Guide, Request, Sequence
from jaxinfer.scheduling.step_plan import StepPlan
from jaxinfer.scheduling.tenants import Tenants
from jaxinfer.scheduling.waiting import order_of


class DuplicateRequest(ValueError):
    """A live request has this id already."""


class Books:
    """Every live request, in exactly one list for each of its live sequences."""

    def __init__(self, limits: SchedulerLimits, pool: PagePool, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: seconds, for what ends after a time."""
        self.limits = limits
        self.pool = pool
        most = limits.max_pinned_ratio * pool.usable_pages if limits.enable_prefix_caching else 0.0
        self.pins = Pins(
            pool,
            max_pages=int(most),
            max_pages_per_tenant=int(most * limits.max_pinned_ratio_per_tenant),
            clock=clock,
        )
        self.kv = KVManager(
            pool,
            groups=limits.cache_groups,
            max_chunk=limits.max_num_batched_tokens,
            max_tokens=limits.max_model_len,
            enable_prefix_caching=limits.enable_prefix_caching,
            pins=self.pins,
        )
        self.stats = EngineStats(total_pages=pool.usable_pages)
        self._requests: dict[str, Request] = {}
        self._running: list[Sequence] = []  # by order
        self._tenants = Tenants(burst=limits.max_model_len)  # who waits, too
        self._fairness = Fairness(self._tenants)
        self._slots = list(range(limits.max_num_seqs - 1, -1, -1))
        self._arrivals = 0
        self._guided = 0  # live sequences that a grammar leads
        self._ended: list[SequenceOutput] = []  # what ended outside `update`, for the next outputs

    # -- requests ------------------------------------------------------------------------------------------------------

    def add(self, submit: Submit, guides: Collection[Guide] = ()) -> None:
        """Takes a request. guides: one for each of its sequences, where a grammar leads them. Raises DuplicateRequest,
        or InvalidRequest when it can never be served."""
        assert not guides or (len(guides) == submit.params.n and self.limits.draws == 1)
        if submit.request_id in self._requests:
            raise DuplicateRequest(f"request id {submit.request_id!r} is in use")
        params, limits = submit.params, self.limits
        max_total = length_limit(submit, limits.max_model_len, self.kv)
        stop_ids, banned_ids = stop_tokens(params, limits.eos_token_ids, limits.vocab_size)
        order = submit.arrival + submit.priority * limits.priority_ageing_seconds
        tenant = self._tenants.join(submit.tenant, submit.weight, params.n)
        request = Request(submit, (order, self._arrivals), stop_ids, banned_ids, max_total, tenant, guides)
        self._arrivals += 1
        self._requests[submit.request_id] = request
        self.stats.prompt_tokens += request.prompt_len
        self._guided += len(guides)
        leader, *siblings = request.sequences
        self._tenants.enqueue(leader)
        if siblings:
            self._tenants.park(siblings)
            self._unpark(request)

    def abort(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one of its sequences; unknown and finished ones are left alone."""
        request = self._requests.get(request_id)
        if request is None:
            return
        self._ended += [
            self._end(sequence, "abort") for sequence in request.live_sequences if index in (None, sequence.index)
        ]

    @property
    def max_pinned_pages(self) -> int:
        """Pages that pins hold together, at most."""
        return self.pins.max_pages_per_tenant and self.pins.max_pages

    @property
    def has_unfinished(self) -> bool:
        return bool(self._requests)

    @property
    def running(self) -> list[Sequence]:
        """Those in slots, by order."""
        return self._running

    @property
    def free_slots(self) -> list[int]:
        return self._slots

    @property
    def num_waiting(self) -> int:
        return self._tenants.num_waiting

    def take_ended(self) -> list[SequenceOutput]:
        """Ends that no step will report (aborts since the last call)."""
        ended, self._ended = self._ended, []
        return ended

    # -- coming and going ----------------------------------------------------------------------------------------------

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

    def _unpark(self, request: Request) -> None:
        """Lets the siblings of a first sequence wait for their turn once they may start."""
        if request.parked and self._may_start(request.parked[0]):
            self._tenants.unpark(request)

    def _preempt(self, sequence: Sequence) -> None:
        """Sends a running sequence back to wait; its tokens stay, its KV is recomputed."""
        self.kv.release(sequence)
        self._leave_slot(sequence)
        sequence.preemptions += 1
        self.stats.preemptions += 1
        self._tenants.enqueue(sequence)
        self._unpark(sequence.request)

    def _fail(self, sequence: Sequence) -> list[SequenceOutput]:
        """Ends a request of which a sequence has no token to go on with. What it computed may not be a number in any of
        its pages, so nobody gets them as a prefix."""
        request, params = sequence.request, sequence.request.params
        guide = sequence.guide
        forbids = guide is not None and (guide.forbids or params.has_bias)
        message = NO_TOKEN_LEFT if forbids else NO_LOGITS
        for each in request.live_sequences:
            self.kv.withdraw(each)
        return [self._end(each, "error", message) for each in request.live_sequences]

    def misled(self, sequence: Sequence) -> list[SequenceOutput]:
        """Ends the request of a sequence whose guide has an error."""
        request, message = sequence.request, "" if sequence.guide is None else sequence.guide.error
        return [self._end(each, "error", message) for each in request.live_sequences]

    def _end(self, sequence: Sequence, reason: str, message: str = "") -> SequenceOutput:
        """Ends a live sequence without a new token."""
        request_id, cached = sequence.request.request_id, sequence.cached_tokens
        untold = sequence.tell()
        account = self._finish(sequence)
        pinned = sequence.pinned_tokens
        return SequenceOutput(request_id, sequence.index, untold, None, reason, None, cached, account, message, pinned)

    def _let_go(self, sequence: Sequence) -> None:
        """Nothing leads it any more."""
        self._guided -= sequence.guide is not None
        sequence.guide = None

    def _finish(self, sequence: Sequence) -> SequenceAccount:
        """Ends a live sequence wherever it is; what it took."""
        account = sequence.account
        self._let_go(sequence)
        sequence.finished = True
        sequence.run_epoch += 1
        self.kv.pin_answer(sequence)
        self.kv.release(sequence)
        if sequence.slot >= 0:
            self._leave_slot(sequence)
        else:
            self._tenants.dequeue(sequence)
        self._tenants.leave(sequence.request.tenant)
        request = sequence.request
        request.unfinished -= 1
        self._unpark(request)
        if request.finished:
            del self._requests[request.request_id]
            request.sequences = []  # each knows its request: in a circle both would wait for the garbage collector
        return account

    def _leave_slot(self, sequence: Sequence) -> None:
        del self._running[bisect_left(self._running, sequence.order, key=order_of)]
        self._slots.append(sequence.slot)
        sequence.slot = -1
        sequence.request.tenant.running -= 1
        sequence.needs_admission = True

    # -- checks --------------------------------------------------------------------------------------------------------

    def refresh_stats(self) -> EngineStats:
        stats = self.stats
        stats.running, stats.waiting = len(self._running), self._tenants.num_waiting
        stats.free_pages, stats.cached_pages = self.pool.available, self.pool.num_cached
        stats.pinned_pages, stats.pins_made, stats.pins_expired, stats.pins_evicted = self.pins.stats
        return stats

    def check_idle(self) -> None:
        """Raises IntegrityError when nobody is left and yet something is missing. Looks at totals alone, so that it
        costs the same whatever the pool."""
        if not self.has_unfinished:
            missing_slots = self.limits.max_num_seqs - len(self._slots)
            check_nothing_left(self.pool, missing_slots, len(self._running), self._tenants)

    def check_integrity(self, plan: StepPlan | None = None) -> None:
        """Raises IntegrityError unless pages, slots and lists add up, and the plan writes only what it owns alone."""
        live = [s for r in self._requests.values() for s in r.sequences if not s.finished]
        writes = []
        for row in plan.rows if plan is not None else ():
            writes += pages_written(self.kv, self._requests[row.request_id].sequences[row.index], row)
        self.pool.check_integrity([table for s in live for table in s.tables], writes)
        self.pins.check_integrity()
        check_tables(self.kv, live)
        check_lists(live, self._running, self._slots, self.limits.max_num_seqs, self._tenants)
