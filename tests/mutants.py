"""Seeded faults in scheduler and page pool. Each is a small, plausible mistake; the suite must notice every one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jaxinfer.scheduling import kv_manager, page_pool, scheduler, tenants
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.step_plan import PlanRow
from tests.group_mutants import GROUP_MUTANTS, untold

KVManager, PagePool, Scheduler = kv_manager.KVManager, page_pool.PagePool, scheduler.Scheduler


def leak_on_abort(patch: pytest.MonkeyPatch) -> None:
    """Aborting forgets to give the pages back."""
    abort = Scheduler.abort

    def leaking(self: Any, request_id: str, index: int | None = None) -> None:
        release, self.kv.release = self.kv.release, lambda sequence: None
        abort(self, request_id, index)
        self.kv.release = release

    patch.setattr(Scheduler, "abort", leaking)


def double_free(patch: pytest.MonkeyPatch) -> None:
    """Giving pages back takes away another owner's share of the first one."""
    release = KVManager.release

    def twice(self: Any, sequence: Sequence) -> None:
        pages = [page for table in sequence.tables for page in table if page]
        release(self, sequence)
        if pages and self.pool._owners[pages[0]]:
            self.pool.release(pages[:1])

    patch.setattr(KVManager, "release", twice)


def no_salt(patch: pytest.MonkeyPatch) -> None:
    """The prefix chain starts from the RoPE variant alone, so tenants see each other's prefixes."""
    patch.setattr(KVManager, "root", lambda self, s, group=0: self.pool.prefixes.root(("", s.rope_variant, group)))


def no_rope_variant_in_salt(patch: pytest.MonkeyPatch) -> None:
    """The prefix chain forgets the RoPE variant."""
    patch.setattr(KVManager, "root", lambda self, s, group=0: self.pool.prefixes.root((s.request.salt, 0, group)))


def stale_run_epoch(patch: pytest.MonkeyPatch) -> None:
    """Finishing does not bump the run epoch, so results in flight still count."""
    finish = Scheduler._finish

    def forgetful(self: Any, sequence: Sequence) -> Any:
        run_epoch = sequence.run_epoch
        account = finish(self, sequence)
        sequence.run_epoch = run_epoch
        return account

    patch.setattr(Scheduler, "_finish", forgetful)


def hit_covers_everything(patch: pytest.MonkeyPatch) -> None:
    """A prefix hit may cover the last token too, so that it is recomputed into a shared page."""
    find = KVManager.find_prefix

    def greedy(self: Any, sequence: Sequence) -> Any:
        sequence.num_tokens += 1
        try:
            return find(self, sequence)
        finally:
            sequence.num_tokens -= 1

    def admit(self: Any, sequence: Sequence, hit: Any) -> None:
        original(self, sequence, hit)
        sequence.num_computed = min(sequence.num_computed, sequence.num_tokens - 1)

    original = KVManager.admit
    patch.setattr(KVManager, "find_prefix", greedy)
    patch.setattr(KVManager, "admit", admit)


def skipped_preempted_token(patch: pytest.MonkeyPatch) -> None:
    """Preemption bumps the run epoch, so the token in flight of a preempted sequence is skipped as stale."""
    preempt = Scheduler._preempt

    def bumping(self: Any, sequence: Sequence) -> None:
        preempt(self, sequence)
        sequence.run_epoch += 1

    patch.setattr(Scheduler, "_preempt", bumping)


def publish_after_giving_away(patch: pytest.MonkeyPatch) -> None:
    """Results in flight publish pages although a preemption has given them away."""
    commit = KVManager.commit

    def careless(self: Any, sequence: Sequence, row: PlanRow, accepted: int) -> None:
        commit(self, sequence, row._replace(kv_epoch=sequence.kv_epoch), accepted)

    patch.setattr(KVManager, "commit", careless)


def publish_half_full(patch: pytest.MonkeyPatch) -> None:
    """The page being filled is published together with the full ones."""
    commit = KVManager.commit

    def early(self: Any, sequence: Sequence, row: PlanRow, accepted: int) -> None:
        size = self.page_size
        commit(self, sequence, row._replace(length=-(-(row.start + row.length) // size) * size - row.start), accepted)

    patch.setattr(KVManager, "commit", early)


def publish_before_it_ran(patch: pytest.MonkeyPatch) -> None:
    """Pages are published when their step is planned, so a row of the same step can hit what is not written yet."""
    make_row = scheduler.plan_row

    def eager(kv: Any, sequence: Sequence, length: int, draws: int) -> PlanRow:
        row = make_row(kv, sequence, length, draws)
        if row.token_ids and row.start + row.length <= sequence.num_known:
            kv.commit(sequence, row, row.draws)
        return row

    patch.setattr(scheduler, "plan_row", eager)


def one_page_short(patch: pytest.MonkeyPatch) -> None:
    """The page for a token that opens a new page is not taken before dispatch."""
    extend = KVManager.extend
    patch.setattr(KVManager, "extend", lambda self, sequence, n: extend(self, sequence, max(1, n - 1)))


def no_reset_after_preemption(patch: pytest.MonkeyPatch) -> None:
    """A sequence that enters a slot again is not announced to the device."""
    leave = Scheduler._leave_slot

    def silent(self: Any, sequence: Sequence) -> None:
        leave(self, sequence)
        sequence.needs_admission = False

    patch.setattr(Scheduler, "_leave_slot", silent)


def hit_without_owner(patch: pytest.MonkeyPatch) -> None:
    """Prefix hits are used without becoming an owner."""
    patch.setattr(PagePool, "retain", lambda self, pages: None)


def evicted_but_still_found(patch: pytest.MonkeyPatch) -> None:
    """Eviction leaves the page in the content index."""

    def forget(self: Any, pages: list[int]) -> None:
        for page in pages:
            self._content[page] = None

    patch.setattr(PagePool, "_forget", forget)


def starts_without_its_token(patch: pytest.MonkeyPatch) -> None:
    """A preempted sequence is admitted again while its newest token is still in flight."""
    patch.setattr(Scheduler, "_may_start", lambda self, sequence: True)


def slot_lost_on_preemption(patch: pytest.MonkeyPatch) -> None:
    """Preemption forgets to give the slot back."""

    def leave(self: Any, sequence: Sequence) -> None:
        self._running.remove(sequence)
        sequence.slot = -1
        sequence.request.tenant.running -= 1
        sequence.needs_admission = True

    patch.setattr(Scheduler, "_leave_slot", leave)


def one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    """The length limit is checked with > instead of >=, one token late."""
    take = Scheduler._take_tokens

    def late(self: Any, sequence: Sequence, *row: Any) -> Any:
        sequence.max_total += 1
        output = take(self, sequence, *row)
        sequence.max_total -= 1
        return output

    patch.setattr(Scheduler, "_take_tokens", late)


def running_is_not_counted_down(patch: pytest.MonkeyPatch) -> None:
    """A preempted sequence still counts as running, so that its tenant seems to hold its share."""
    preempt = Scheduler._preempt

    def forgetful(self: Any, sequence: Sequence) -> None:
        preempt(self, sequence)
        sequence.request.tenant.running += 1

    patch.setattr(Scheduler, "_preempt", forgetful)


def way_made_in_a_planned_row(patch: pytest.MonkeyPatch) -> None:
    """Room for another tenant is taken from sequences that have a row in the step already."""
    fill = Scheduler._fill

    def late(self: Any, step: Any, prefilling: list[Sequence]) -> None:
        if self._tenants.contended:
            self._make_way()
        fill(self, step, prefilling)

    patch.setattr(Scheduler, "_fill", late)


def dealt_twice(patch: pytest.MonkeyPatch) -> None:
    """A sequence that came in is still among those who wait."""
    patch.setattr(tenants.Tenants, "dequeue", lambda self, sequence: None)


def hit_outlives_its_pages(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix is not told that a page of it was evicted or withdrawn."""
    untold(patch, (page_pool.FORGOTTEN,))


def hit_outlives_withdrawal(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix is told of eviction, but not when a failed request takes its pages back."""
    withdraw = PagePool.withdraw

    def untold(self: Any, pages: Any) -> None:
        changes, self.changes = self.changes, page_pool.Changes()
        withdraw(self, pages)
        self.changes = changes

    patch.setattr(PagePool, "withdraw", untold)


def hit_does_not_grow(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix is not told that the page after it was published."""
    publish = PagePool.publish

    def untold(self: Any, page: int, node: Any) -> None:
        growth = None if node.parent is None else node.parent.growth
        publish(self, page, node)
        if growth is not None:
            node.parent.growth = growth

    patch.setattr(PagePool, "publish", untold)


def hit_counts_old_owners(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix is not told that its pages gained or lost their owners."""
    untold(patch, (page_pool.OWNED, page_pool.UNOWNED))


def hit_trusts_a_gap(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix that missed more changes than are kept stays as it was."""
    since = page_pool.Changes.since
    patch.setattr(page_pool.Changes, "since", lambda self, seen, most: since(self, seen, most) or [])


def siblings_stay_parked(patch: pytest.MonkeyPatch) -> None:
    """The siblings of a sequence that hits its whole prompt wait for it to publish something."""
    unpark, admit = Scheduler._unpark, Scheduler._admit

    def late(self: Any, sequence: Sequence, step: Any, reserved: int) -> Any:
        self._unpark = lambda request: None
        try:
            return admit(self, sequence, step, reserved)
        finally:
            self._unpark = unpark.__get__(self)

    patch.setattr(Scheduler, "_admit", late)


def told_twice(patch: pytest.MonkeyPatch) -> None:
    """A forced token is taken once more when the step that draws it returns."""
    jump = Scheduler.jump

    def forgetful(self: Any, sequence: Sequence) -> Any:
        output = jump(self, sequence)
        sequence.foretold = False
        return output

    patch.setattr(Scheduler, "jump", forgetful)


def forced_behind_a_pending_token(patch: pytest.MonkeyPatch) -> None:
    """Forced tokens do not take the place of the one that is on its way."""
    jump = Scheduler.jump

    def longer(self: Any, sequence: Sequence) -> Any:
        before = sequence.num_pending
        output = jump(self, sequence)
        if sequence.foretold and not sequence.finished:
            sequence.num_pending, sequence.num_tokens = before, sequence.num_tokens + before
        return output

    patch.setattr(Scheduler, "jump", longer)


def forced_past_the_end(patch: pytest.MonkeyPatch) -> None:
    """Forced tokens are not looked at for what ends a sequence."""
    append = Scheduler._append

    def endless(self: Any, sequence: Sequence, tokens: Any, total: int) -> Any:
        found = append(self, sequence, tokens, total)
        return found if len(tokens) == 1 else (found[0], None, None)

    patch.setattr(Scheduler, "_append", endless)


MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    f.__name__: f
    for f in (
        leak_on_abort,
        double_free,
        no_salt,
        no_rope_variant_in_salt,
        stale_run_epoch,
        hit_covers_everything,
        skipped_preempted_token,
        publish_after_giving_away,
        publish_half_full,
        publish_before_it_ran,
        one_page_short,
        no_reset_after_preemption,
        hit_without_owner,
        evicted_but_still_found,
        starts_without_its_token,
        slot_lost_on_preemption,
        one_token_too_many,
        running_is_not_counted_down,
        way_made_in_a_planned_row,
        dealt_twice,
        hit_outlives_its_pages,
        hit_outlives_withdrawal,
        hit_does_not_grow,
        hit_counts_old_owners,
        hit_trusts_a_gap,
        siblings_stay_parked,
        told_twice,
        forced_behind_a_pending_token,
        forced_past_the_end,
    )
} | GROUP_MUTANTS
# Some of these make the scheduler no wrong plan, only another one than it would make without a memory.
OF_MEMORY = (
    "hit_outlives_its_pages",
    "hit_outlives_withdrawal",
    "hit_does_not_grow",
    "hit_counts_old_owners",
    "hit_trusts_a_gap",
    "siblings_stay_parked",
    "hit_does_not_hear_of_new_pages",
)
# These show only where several tenants have requests.
OF_TENANTS = ("running_is_not_counted_down", "way_made_in_a_planned_row")
# These show only where grammars lead sequences.
OF_GUIDES = ("told_twice", "forced_behind_a_pending_token", "forced_past_the_end")
# These show only where layers have windows, or groups several page tables.
OF_GROUPS = tuple(GROUP_MUTANTS)
