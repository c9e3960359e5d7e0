"""The order in which pages that nobody owns are evicted."""

from __future__ import annotations

from collections.abc import Iterator

from jaxinfer.scheduling.step_plan import NULL_PAGE


class CachedPages:
    """Pages with content and without owner, the one that was released first at the front: a linked list in two lists,
    since an OrderedDict of a large pool takes milliseconds when it grows."""

    def __init__(self, num_pages: int) -> None:
        # The null page is both ends.
        self._after = [NULL_PAGE] * num_pages
        self._before = [NULL_PAGE] * num_pages
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        page = self._after[NULL_PAGE]
        while page != NULL_PAGE:
            yield page
            page = self._after[page]

    def append(self, page: int) -> None:
        last = self._before[NULL_PAGE]
        self._after[last] = self._before[NULL_PAGE] = page
        self._before[page], self._after[page] = last, NULL_PAGE
        self._count += 1

    def remove(self, page: int) -> None:
        before, after = self._before[page], self._after[page]
        self._after[before], self._before[after] = after, before
        self._count -= 1

    def pop_first(self, count: int) -> list[int]:
        """Takes the first `count` pages out; there must be so many."""
        pages, after, page = [], self._after, NULL_PAGE
        for _ in range(count):
            page = after[page]
            pages.append(page)
        first = after[page]
        after[NULL_PAGE], self._before[first] = first, NULL_PAGE
        self._count -= count
        return pages
