"""What is known of a waiting sequence's prefix where one page table has all of it: found once, then kept up to date."""

from __future__ import annotations

from jaxinfer.scheduling.page_pool import FORGOTTEN, PagePool
from jaxinfer.scheduling.prefix_table import PrefixNode, TokenSource


class PrefixHit:
    """The longest run of published pages that hold a sequence's first tokens.

    A hit changes in three ways. A page of it loses its content (evicted, or withdrawn): the pool's `Changes` say so,
    and from there on pages are looked up anew. The page after its last one is published: the last content's `growth`
    tells. Its pages gain their first owner or lose their last one: `Changes`, again. So a step pays for what happened,
    not for the length.

    nodes: contents known so far, from the root on; they may reach beyond `pages`, since a content that was evicted may
    be published again. They are held, so that tokens are compared once only.
    """

    __slots__ = ("_growth", "_seen", "_unowned", "nodes", "pages", "rope_variant")

    def __init__(self, root: PrefixNode, rope_variant: int) -> None:
        self.nodes = [root]
        self.pages: list[int] = []
        self.rope_variant = rope_variant
        self._unowned = bytearray()  # one for each page: 1 where nobody owns it
        self._seen = -1  # of the pool's changes; -1: never looked
        self._growth = -1  # of the last content, when nothing was found behind it

    @property
    def node(self) -> PrefixNode:
        """The content of the last page; the root when there is none."""
        return self.nodes[len(self.pages)]

    @property
    def length(self) -> int:
        """How many pages it has."""
        return len(self.pages)

    @property
    def known(self) -> int:
        """Contents that are known."""
        return len(self.nodes)

    def tables(self) -> list[list[int]]:
        """The pages to share, in the one list that there is."""
        return [list(self.pages)]

    def last_nodes(self) -> list[PrefixNode | None]:
        return [self.node]

    @property
    def num_unowned(self) -> int:
        """Pages that nobody owns, so that the pool counts them as available."""
        return self._unowned.count(1)

    def refresh(self, pool: PagePool, sequence: TokenSource, most: int, new: int | None = None) -> None:
        """Makes it what a look-up of at most `most` pages would find now; with `new`, no more than so many pages are
        looked up whose content was not known, and the rest is left to the next call."""
        if self._seen != pool.changes.end:
            self._follow(pool)
        if self._growth != self.node.growth:
            whole = self._extend(pool, sequence, most, most if new is None else new)
            self._growth = self.node.growth if whole else -1

    def _follow(self, pool: PagePool) -> None:
        pages, unowned = self.pages, self._unowned
        changes = pool.changes.since(self._seen, len(pages))
        self._seen = pool.changes.end
        if not pages:
            return  # there is nothing that could have changed
        if changes is None:
            pages.clear()
            unowned.clear()
            self._growth = -1
            return
        for page, depth, what in changes:
            i = depth - 1
            if i < len(pages) and pages[i] == page:
                if what == FORGOTTEN:
                    del pages[i:], unowned[i:]
                    self._growth = -1
                else:
                    unowned[i] = what

    def _extend(self, pool: PagePool, sequence: TokenSource, most: int, new: int) -> bool:
        """Appends the pages that follow; whether those are all."""
        nodes, found = self.nodes, []
        start, whole = len(self.pages), True
        for node in nodes[start + 1 :]:
            page = pool.lookup(node)
            if page is None:
                break
            found.append(page)
        known = start + len(found)
        if known + 1 == len(nodes):
            end = min(most, known + new)
            while known < end:
                # More at a time the more is found: where nothing is, tokens of one page are read.
                count = min(end - known, 1 + 4 * (known - start))
                contents, pages = self._look_up(pool, sequence, known, count)
                nodes += contents
                found += pages
                known += len(pages)
                if len(pages) < count:
                    break
            whole = known < end or end == most
        self.pages += found
        self._unowned += pool.unowned(found)
        return whole

    def _look_up(
        self, pool: PagePool, sequence: TokenSource, start: int, count: int
    ) -> tuple[list[PrefixNode], list[int]]:
        """Contents and pages of up to `count` pages from the one at `start` on, whose tokens are compared."""
        size = pool.page_size
        return pool.run(self.nodes[start], sequence.tokens(start * size, (start + count) * size))
