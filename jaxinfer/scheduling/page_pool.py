"""The pool of KV pages: who owns which page, and which full pages can be found again by their content.

A page is in exactly one of five states: the null page (page 0), free (no content), cached (content, no owner, may be
evicted), pinned (the same, but evicted only when its pins gave way) or in use (one or more owners, pinned or not).
Content is named by a `PrefixNode`: the page's own token ids plus the node of the page before it, down to a root that
carries the salt. Nodes are interned, so one prefix is one object, and finding one compares token ids and never a
digest: two different prefixes cannot be taken for each other.

Layers with several page tables need several pages for the same tokens. Such pages form a bundle, which is taken, owned,
found and given back as one and goes by the number of its first page.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import not_
from typing import Protocol

from jaxinfer.scheduling.cached_pages import CachedPages
from jaxinfer.scheduling.prefix_table import PrefixNode, PrefixTable
from jaxinfer.scheduling.step_plan import NULL_PAGE


class PoolExhausted(RuntimeError):
    """More pages were asked for than `available`; callers check first, so this is a bug in the caller."""


class IntegrityError(AssertionError):
    """The pool's books do not add up."""


OWNED, UNOWNED, FORGOTTEN, PUBLISHED = 0, 1, 2, 3
Change = tuple[int, int, int]  # page, depth of its content, and one of the four above: what became of it


class Changes:
    """What became of pages with content, newest last: from it a prefix hit that was found earlier is brought up to date
    at the cost of what happened since, and not of the hit's length.

    Old entries are dropped; whoever has not read them looks its pages up anew.
    """

    KEPT = 1 << 14

    def __init__(self) -> None:
        self._entries: list[Change] = []
        self._dropped = 0

    def add(self, changes: Iterable[Change]) -> None:
        self._entries += changes
        if len(self._entries) >= 2 * self.KEPT:
            drop = len(self._entries) - self.KEPT
            del self._entries[:drop]
            self._dropped += drop

    @property
    def end(self) -> int:
        """What to give `since` later."""
        return self._dropped + len(self._entries)

    def since(self, seen: int, most: int) -> list[Change] | None:
        """The changes after `seen`, an earlier `end`; None when they are more than `most` or no longer known."""
        start = seen - self._dropped
        return self._entries[start:] if start >= 0 and len(self._entries) - start <= most else None


class Pinning(Protocol):
    """What knows which pins hold which pages (`pins.py`)."""

    def give_way(self) -> bool:
        """Unpins pages that nobody owns, of the pin that ends first; False where there is none."""
        ...

    def lose(self, pages: Sequence[int]) -> None:
        """Ends all pins that hold one of these pages, whose content is about to be taken back."""
        ...


class PagePool:
    """`num_pages` pages of `page_size` tokens, page 0 being the null page.

    tells_published: `changes` names publications too, for those whose prefixes may have gaps.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2:
            raise ValueError(f"num_pages is {num_pages}; at least 2 are needed (page 0 is the null page)")
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}; it must be positive")
        self.num_pages = num_pages
        self.page_size = page_size
        self.prefixes = PrefixTable()
        self.changes = Changes()
        self._free = list(range(num_pages - 1, NULL_PAGE, -1))  # a stack: low pages first, recently freed pages again
        self._cached = CachedPages(num_pages)
        self._owners = [0] * num_pages
        self._content: list[PrefixNode | None] = [None] * num_pages
        self._twins: dict[PrefixNode, list[int]] = {}  # more pages of one content, beside its node's
        self._rest: dict[int, tuple[int, ...]] = {}  # of each bundle by its first page: its other pages
        self._cached_rest = 0  # how many of those belong to cached bundles
        self._pins = [0] * num_pages  # how many hold each page; of a bundle its first page counts
        self._pinned = 0  # pages that pins hold and nobody owns
        self.pinning: Pinning | None = None
        self.tells_published = False

    @property
    def usable_pages(self) -> int:
        return self.num_pages - 1

    @property
    def available(self) -> int:
        """Pages that `allocate` can give out now."""
        return len(self._free) + len(self._cached) + self._cached_rest + self._pinned

    @property
    def num_cached(self) -> int:
        return len(self._cached) + self._cached_rest + self._pinned

    def bundle(self, page: int) -> tuple[int, ...]:
        """All pages of the bundle that goes by `page`; of the null page that one alone."""
        return (page, *self._rest.get(page, ()))

    def is_writable(self, page: int) -> bool:
        """Whether its only owner may write to it: one owner and no content that others could find."""
        return self._owners[page] == 1 and self._content[page] is None

    def allocate(self, count: int) -> list[int]:
        """Takes `count` pages with one owner each and no content, evicting the least recently used cached ones."""
        if count > self.available:
            raise PoolExhausted(f"{count} pages wanted, {self.available} available")
        taken = min(count, len(self._free))
        pages = self._free[len(self._free) - taken :]
        del self._free[len(self._free) - taken :]
        pages.reverse()
        if taken < count:
            pages += self._evict(count - taken)
        for page in pages:
            self._owners[page] = 1
        return pages

    def allocate_bundles(self, count: int, size: int) -> list[int]:
        """Takes `count` bundles of `size` pages each, as `allocate` takes pages; gives their first ones."""
        pages = self.allocate(count * size)
        for i in range(0, len(pages), size):
            self._rest[pages[i]] = rest = tuple(pages[i + 1 : i + size])
            for page in rest:
                self._owners[page] = 0  # the first one's owners are those of all
        return pages[::size]

    def _evict(self, count: int) -> list[int]:
        while len(self._cached) + self._cached_rest < count:
            if self.pinning is None or not self.pinning.give_way():
                raise IntegrityError(f"{self._pinned} pages are pinned, but no pin gives way")
        if not self._rest:
            pages = self._cached.pop_first(count)
            self._forget(pages)
            return pages
        firsts, pages = [], list[int]()
        while len(pages) < count:
            firsts += self._cached.pop_first(1)
            rest = self._rest.pop(firsts[-1], ())
            self._cached_rest -= len(rest)
            pages += (firsts[-1], *rest)
        self._forget(firsts)
        self._free += pages[count:]
        return pages[:count]

    def _forget(self, pages: Iterable[int]) -> None:
        changes: list[Change] = []
        for page in pages:
            node = self._content[page]
            if node is None:
                continue
            changes.append((page, node.depth, FORGOTTEN))
            self._content[page] = None
            if node in self._twins:
                self._forget_twin(page, node)
            else:
                node.page = NULL_PAGE
        self.changes.add(changes)

    def _forget_twin(self, page: int, node: PrefixNode) -> None:
        twins = self._twins[node]
        if page == node.page:
            node.page = twins.pop(0)
        else:
            twins.remove(page)
        if not twins:
            del self._twins[node]

    def retain(self, pages: Iterable[int]) -> None:
        """Adds an owner to each of these pages, which have content."""
        changes: list[Change] = []
        for page in pages:
            if self._owners[page] == 0:
                if self._pins[page]:
                    self._pinned -= 1 + len(self._rest.get(page, ()))
                else:
                    self._uncache(page)
                node = self._content[page]
                assert node is not None, "a page without content is not cached"
                changes.append((page, node.depth, OWNED))
            self._owners[page] += 1
        self.changes.add(changes)

    def release(self, pages: Iterable[int]) -> None:
        """Removes one owner from each page. Give the pages in reverse, so that prefixes outlive their tails."""
        changes: list[Change] = []
        for page in pages:
            owners = self._owners[page]
            if owners < 1 or page == NULL_PAGE:
                raise IntegrityError(f"page {page} was released without an owner")
            self._owners[page] = owners - 1
            if owners == 1:
                node = self._content[page]
                if node is None:
                    self._free.append(page)
                    if page in self._rest:
                        self._free += self._rest.pop(page)
                else:
                    if self._pins[page]:
                        self._pinned += 1 + len(self._rest.get(page, ()))
                    else:
                        self._cache(page)
                    changes.append((page, node.depth, UNOWNED))
        self.changes.add(changes)

    def _cache(self, page: int) -> None:
        self._cached.append(page)
        if page in self._rest:
            self._cached_rest += len(self._rest[page])

    def _uncache(self, page: int) -> None:
        self._cached.remove(page)
        if page in self._rest:
            self._cached_rest -= len(self._rest[page])

    def pin(self, page: int) -> bool:
        """Keeps a page, or bundle, that has content from being evicted; whether it was not pinned before."""
        self._pins[page] += 1
        if self._pins[page] > 1:
            return False
        if not self._owners[page]:
            self._uncache(page)
            self._pinned += 1 + len(self._rest.get(page, ()))
        return True

    def unpin(self, page: int) -> bool:
        """Takes one pin off. Without any it is as if it was used a moment ago: whether that is so."""
        self._pins[page] -= 1
        if self._pins[page]:
            return False
        if not self._owners[page]:
            self._pinned -= 1 + len(self._rest.get(page, ()))
            self._cache(page)
        return True

    def is_owned(self, page: int) -> bool:
        return self._owners[page] > 0

    def content_of(self, page: int) -> PrefixNode | None:
        return self._content[page]

    def publish(self, page: int, node: PrefixNode) -> None:
        """Names the content of a full page so that others can find it. Nobody writes to it from now on."""
        if self._content[page] is not None:
            return
        self._content[page] = node
        if self.tells_published:
            self.changes.add(((page, node.depth, PUBLISHED),))
        if node.page != NULL_PAGE:
            self._twins.setdefault(node, []).append(page)
            return
        node.page = page
        if node.parent is not None:
            node.parent.growth += 1

    def lookup(self, node: PrefixNode) -> int | None:
        """A page with this content, if there is one."""
        return node.page or None

    def run(self, parent: PrefixNode, token_ids: tuple[int, ...]) -> tuple[list[PrefixNode], list[int]]:
        """The longest run of published pages that holds the tokens behind `parent`: contents and pages."""
        size, find = self.page_size, self.prefixes.find
        nodes, pages = [], []
        for start in range(0, len(token_ids) - size + 1, size):
            node = find(parent, token_ids[start : start + size])
            if node is None or not node.page:
                break
            nodes.append(node)
            pages.append(node.page)
            parent = node
        return nodes, pages

    def unowned(self, pages: Iterable[int]) -> bytes:
        """For each page 1 if it counts in `available` (nobody owns it), else 0."""
        return bytes(map(not_, map(self._owners.__getitem__, pages)))

    def withdraw(self, pages: Iterable[int]) -> None:
        """Takes the content of owned pages back: nobody finds it any more, and it is gone with the last owner."""
        pages = list(pages)
        self._lose(pages)
        self._forget(pages)

    def _lose(self, pages: Sequence[int]) -> None:
        pinned = [page for page in pages if self._pins[page]]
        if pinned and self.pinning is not None:
            self.pinning.lose(pinned)

    def withdraw_content(self, node: PrefixNode) -> None:
        """Takes a content back from all pages that have it, also from those that nobody owns."""
        while node.page != NULL_PAGE:
            page = node.page
            self._lose([page])
            self._forget([page])
            if not self._owners[page]:
                self._cached.remove(page)
                rest = self._rest.pop(page, ())
                self._cached_rest -= len(rest)
                self._free += (page, *rest)

    def clear_cache(self) -> int:
        """Forgets all content that nobody owns, and ends the pins of it; returns how many pages became free."""
        count = self.num_cached
        self._free += self._evict(count)
        return count

    def check_integrity(self, tables: Iterable[Sequence[int]], writes: Iterable[int] = ()) -> None:
        """Raises IntegrityError unless the books add up.

        tables: what every live sequence has in its page tables, bundles by their first page. writes: every page that
        the step just planned will write.
        """
        owners = [0] * self.num_pages
        for table in tables:
            for page in table:
                owners[page] += 1
        owners[NULL_PAGE] = 0  # it stands where nothing is kept
        if owners != self._owners:
            wrong = [(p, owners[p], self._owners[p]) for p in range(self.num_pages) if owners[p] != self._owners[p]]
            raise IntegrityError(f"owners do not add up; (page, tables, pool): {wrong[:8]}")
        in_use = sum(len(self.bundle(page)) for page, count in enumerate(owners) if count)
        free, cached = set(self._free), set(self._cached)
        self._check_bundles(owners, free, cached)
        if len(free) != len(self._free) or free & cached or in_use + len(free) + self.num_cached != self.usable_pages:
            raise IntegrityError(
                f"free {len(self._free)} + cached {self.num_cached} + in use {in_use} is not {self.usable_pages}"
            )
        if NULL_PAGE in free or NULL_PAGE in cached or owners[NULL_PAGE]:
            raise IntegrityError("the null page was given out")
        for page in free | cached:
            if owners[page] or self._pins[page] or (self._content[page] is None) != (page in free):
                raise IntegrityError(f"page {page} is unowned but has owners, or sits in the wrong list")
        pinned = [page for page, pins in enumerate(self._pins) if pins]
        if any(self._content[page] is None for page in pinned):
            raise IntegrityError("a page without content is pinned")
        if self._pinned != sum(len(self.bundle(page)) for page in pinned if not owners[page]):
            raise IntegrityError(f"{self._pinned} pages were counted that pins hold and nobody owns")
        named = {node.page: node for node in self.prefixes if node.page != NULL_PAGE}
        named |= {page: node for node, pages in self._twins.items() for page in pages}
        if named != {p: n for p, n in enumerate(self._content) if n is not None}:
            raise IntegrityError("the content index and the pages disagree")
        for page in writes:
            if not self.is_writable(page):
                raise IntegrityError(f"page {page} would be written but is shared or published, or nobody owns it")

    def check_pins(self, counts: list[int]) -> None:
        """Raises IntegrityError unless pages have so many pins, in order."""
        if counts != self._pins:
            wrong = [(p, counts[p], self._pins[p]) for p in range(self.num_pages) if counts[p] != self._pins[p]]
            raise IntegrityError(f"pins do not add up; (page, pins, pool): {wrong[:8]}")

    def _check_bundles(self, owners: list[int], free: set[int], cached: set[int]) -> None:
        """Each page of a bundle belongs to that one alone, which is owned or cached."""
        rest = [page for pages in self._rest.values() for page in pages]
        if len(set(rest)) < len(rest) or free.union(cached, self._rest) & set(rest) or any(owners[p] for p in rest):
            raise IntegrityError("a page of a bundle is free, or another one's")
        if any(not owners[page] and page not in cached and not self._pins[page] for page in self._rest):
            raise IntegrityError("a bundle that nobody owns is not cached")
        if self._cached_rest != sum(len(self._rest.get(page, ())) for page in cached):
            raise IntegrityError(f"{self._cached_rest} pages of cached bundles were counted")
