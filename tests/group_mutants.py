"""Seeded faults that show where layers have windows, or groups several page tables; see `mutants.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jaxinfer.scheduling import group_hit, kv_manager, page_pool, scheduler
from jaxinfer.scheduling.cache_shape import UNBOUNDED, CacheShape
from jaxinfer.scheduling.request import Sequence

KVManager, PagePool, Scheduler = kv_manager.KVManager, page_pool.PagePool, scheduler.Scheduler


def untold(patch: pytest.MonkeyPatch, untold: tuple[int, ...]) -> None:
    """Changes of some kinds are not written down."""
    add = page_pool.Changes.add

    def silent(self: Any, changes: list[page_pool.Change]) -> None:
        add(self, [change for change in changes if change[2] not in untold])

    patch.setattr(page_pool.Changes, "add", silent)


def left_one_page_early(patch: pytest.MonkeyPatch) -> None:
    """A window is one page shorter than it is where pages are left behind."""
    kept = CacheShape.first_kept
    patch.setattr(CacheShape, "first_kept", lambda self, group, start: kept(self, group, start + self.page_size))


def left_before_it_is_read(patch: pytest.MonkeyPatch) -> None:
    """Pages are left behind by where the planned row ends, not by where it begins."""
    leave = KVManager.leave_behind

    def hasty(self: Any, sequence: Sequence) -> None:
        start, sequence.num_computed = sequence.num_computed, sequence.num_tokens
        leave(self, sequence)
        sequence.num_computed = start

    patch.setattr(KVManager, "leave_behind", hasty)


def left_behind_untold(patch: pytest.MonkeyPatch) -> None:
    """The device is not told which pages were left behind."""
    leave = KVManager.leave_behind

    def silent(self: Any, sequence: Sequence) -> None:
        leave(self, sequence)
        sequence.left_behind = []

    patch.setattr(KVManager, "leave_behind", silent)


def left_behind_for_good(patch: pytest.MonkeyPatch) -> None:
    """Pages that are left behind are not given back to the pool."""
    leave = KVManager.leave_behind

    def leaking(self: Any, sequence: Sequence) -> None:
        release, self.pool.release = self.pool.release, lambda pages: None
        try:
            leave(self, sequence)
        finally:
            self.pool.release = release

    patch.setattr(KVManager, "leave_behind", leaking)


def left_behind_still_charged(patch: pytest.MonkeyPatch) -> None:
    """A tenant goes on being charged for pages that its sequences have left behind."""
    leave = KVManager.leave_behind

    def charging(self: Any, sequence: Sequence) -> None:
        pages = sequence.request.tenant.pages
        leave(self, sequence)
        sequence.request.tenant.pages = pages

    patch.setattr(KVManager, "leave_behind", charging)


def left_while_shared(patch: pytest.MonkeyPatch) -> None:
    """Leaving a page behind takes it from everybody who owns it."""
    leave = KVManager.leave_behind

    def greedy(self: Any, sequence: Sequence) -> None:
        before = [list(table) for table in sequence.tables]
        leave(self, sequence)
        for old, table in zip(before, sequence.tables, strict=True):
            self.pool.release([p for p, q in zip(old, table, strict=True) if p != q and self.pool._owners[p]])

    patch.setattr(KVManager, "leave_behind", greedy)


def hit_ignores_windows(patch: pytest.MonkeyPatch) -> None:
    """A prefix hit asks for the pages of layers without a window alone."""

    def longest(self: Any, most: int) -> int:
        shape = self._shape
        gaps = [c.there.find(0) for g, c in enumerate(self._chains) if shape.most[g] == UNBOUNDED]
        return min(most, *(len(c.pages) for c in self._chains), *(gap for gap in gaps if gap >= 0))

    patch.setattr(group_hit.GroupHit, "_longest", longest)


def hit_sees_a_page_less(patch: pytest.MonkeyPatch) -> None:
    """A prefix hit needs one page less than its next token sees."""
    first = CacheShape.first_page

    def late(self: Any, group: int, length: int) -> int:
        found = first(self, group, length)
        return found + 1 if 0 < found < length else found

    patch.setattr(CacheShape, "first_page", late)


def hit_keeps_no_count(patch: pytest.MonkeyPatch) -> None:
    """After a prefix hit the first page that a sequence has is taken to be its first of all."""
    admit = KVManager.admit

    def forgetful(self: Any, sequence: Sequence, hit: Any) -> None:
        admit(self, sequence, hit)
        sequence.first = [0] * len(sequence.first)
        sequence.leaves_at = self._leaves_at

    patch.setattr(KVManager, "admit", forgetful)


def groups_share_contents(patch: pytest.MonkeyPatch) -> None:
    """All groups look for their pages under one root."""
    patch.setattr(KVManager, "root", lambda self, s, group=0: self.pool.prefixes.root((s.request.salt, s.rope_variant)))


def gap_is_published(patch: pytest.MonkeyPatch) -> None:
    """What was left behind before it was published is published afterwards, from a page that is no longer there."""
    leave = KVManager.leave_behind

    def unpublished(self: Any, sequence: Sequence) -> None:
        caching, self.caching = self.caching, False
        leave(self, sequence)
        self.caching = caching

    patch.setattr(KVManager, "leave_behind", unpublished)


def bundle_given_back_in_part(patch: pytest.MonkeyPatch) -> None:
    """Only the first page of a bundle becomes free again."""
    release = PagePool.release

    def partial(self: Any, pages: Any) -> None:
        pages = list(pages)
        release(self, pages)
        for page in pages:
            if page in self._free and len(self._free) > 1 and self._free[-1] != page:
                self._free.pop()
                break

    patch.setattr(PagePool, "release", partial)


def bundle_evicted_in_part(patch: pytest.MonkeyPatch) -> None:
    """Of evicted bundles, what is beyond the pages wanted is lost."""
    evict = PagePool._evict

    def lossy(self: Any, count: int) -> list[int]:
        free = list(self._free)
        pages = evict(self, count)
        self._free[:] = free
        return pages

    patch.setattr(PagePool, "_evict", lossy)


def second_table_copies_the_first(patch: pytest.MonkeyPatch) -> None:
    """All tables of a group get the first page of its bundles."""
    patch.setattr(PagePool, "bundle", lambda self, page: (page,) * (1 + len(self._rest.get(page, ()))))


def windows_reserve_too_little(patch: pytest.MonkeyPatch) -> None:
    """What a sequence with a window needs at most is counted without the page in which its row begins."""
    make = CacheShape.__init__

    def short(self: Any, *sizes: Any) -> None:
        make(self, *sizes)
        self.windows = tuple(window._replace(most=window.most - 1) for window in self.windows)
        self.most = tuple(most - 1 if most < UNBOUNDED else most for most in self.most)

    patch.setattr(CacheShape, "__init__", short)


def hit_does_not_hear_of_new_pages(patch: pytest.MonkeyPatch) -> None:
    """A remembered prefix with gaps is not told when one of them is filled."""
    untold(patch, (page_pool.PUBLISHED,))


GROUP_MUTANTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    f.__name__: f
    for f in (
        left_one_page_early,
        left_before_it_is_read,
        left_behind_untold,
        left_behind_for_good,
        left_behind_still_charged,
        left_while_shared,
        hit_ignores_windows,
        hit_sees_a_page_less,
        hit_keeps_no_count,
        groups_share_contents,
        gap_is_published,
        bundle_given_back_in_part,
        bundle_evicted_in_part,
        second_table_copies_the_first,
        windows_reserve_too_little,
        hit_does_not_hear_of_new_pages,
    )
}
