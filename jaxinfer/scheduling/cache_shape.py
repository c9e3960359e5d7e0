"""What sequences need of the pool, by groups of layers: how many pages, and from which on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jaxinfer.cache_groups import CacheGroups

UNBOUNDED = 1 << 60


class Window(NamedTuple):
    """A group that leaves pages behind. size: its page tables. most: pages that a sequence holds in each of them. seen:
    those before its own that the first token of a page sees."""

    group: int
    size: int
    most: int
    seen: int


class CacheShape:
    """Cache groups in pages.

    Attributes:
        tables: of each group, the numbers of its page tables.
        sizes: of each group, how many those are.
        most: of each group, the most pages that a sequence holds in one table.
        windows: the groups that leave pages behind; a window of as much as `max_tokens` leaves nothing.
        each: pages that all tables together take for `page_size` tokens.
        whole: the same for the groups that keep everything.
    """

    def __init__(self, groups: CacheGroups, page_size: int, max_chunk: int, max_tokens: int) -> None:
        """max_chunk: tokens of a row, at most. max_tokens: of a sequence, at most."""
        self.page_size = page_size
        self.tables = tuple(group.tables for group in groups.groups)
        self.sizes = tuple(len(tables) for tables in self.tables)
        self._specs = tuple(group.spec for group in groups.groups)
        windows = []
        for i, spec in enumerate(self._specs):
            if spec.window is not None and spec.first_kept(max_tokens - 1) >= page_size:
                seen = -(-(spec.window - 1) // page_size)
                # Those of a row, the one in which it begins, and those before it.
                most = -(-max_chunk // page_size) + 1 + seen
                windows.append(Window(i, self.sizes[i], most, seen))
        self.windows = tuple(windows)
        bounded = {window.group: window.most for window in windows}
        self.most = tuple(bounded.get(i, UNBOUNDED) for i in range(len(self.sizes)))
        self.each = sum(self.sizes)
        self.whole = sum(size for i, size in enumerate(self.sizes) if i not in bounded)

    def most_pages(self, pages: int) -> int:
        """The most pages that a sequence of so many logical pages holds at once, in all its tables."""
        return self.whole * pages + sum(window.size * min(pages, window.most) for window in self.windows)

    def decode_pages(self, pages: int) -> int:
        """The same once its prompt is computed, while it takes one token after the other."""
        return self.whole * pages + sum(window.size * min(pages, window.seen + 2) for window in self.windows)

    def fitting(self, num_pages: int, pages: int) -> int:
        """How many sequences of so many logical pages `num_pages` pages hold: their prompts share the steps' tokens."""
        first, each = self.most_pages(pages), self.decode_pages(pages)
        return 0 if num_pages < first else 1 + (num_pages - first) // each

    def longest(self, num_pages: int) -> int:
        """Logical pages of the longest sequence that `num_pages` pages hold."""
        low, high = 0, num_pages // max(1, self.whole)
        if not self.windows:
            return high
        if not self.whole:  # windows alone bound what a sequence holds, or it has only windows of pages
            high = UNBOUNDED
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.most_pages(middle) <= num_pages else (low, middle - 1)
        return low

    def first_seen(self, group: int, position: int) -> int:
        """The first page that a query at a position sees; 0 for groups that keep everything."""
        if self.most[group] == UNBOUNDED:
            return 0
        return self._specs[group].first_kept(position) // self.page_size

    def first_page(self, group: int, length: int) -> int:
        """The first page that a query behind `length` full pages sees."""
        return self.first_seen(group, length * self.page_size)

    def first_kept(self, group: int, start: int) -> int:
        """The first page that a sequence keeps when its next row begins at position `start`: all that the row sees,
        and what another sequence needs to share all full pages but those that hold its last token."""
        return self.first_page(group, max(0, start - 1) // self.page_size)

    def leaves_at(self, first: Sequence[int]) -> int:
        """Where the next row must begin for a sequence to leave more behind than the pages before `first`, of each
        group."""
        page = min((first[window.group] + 1 + window.seen for window in self.windows), default=UNBOUNDED)
        return page * self.page_size + 1
