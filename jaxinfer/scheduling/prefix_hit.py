"""What is known of a waiting sequence's prefix: found once, then kept up to date."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jaxinfer.scheduling.page_pool import FORGOTTEN, PagePool, PrefixNode

if TYPE_CHECKING:
    from jaxinfer.scheduling.request import Sequence


class PrefixHit:
    """The longest run of published pages that hold a sequence's first tokens.

    A hit changes in three ways. A page of it loses its content (evicted, or withdrawn): the pool's `Changes` say so,
    and from there on pages are looked up anew. The page after its last one is published: one look tells. Its pages gain
    their first owner or lose their last one: `Changes`, again. So a step pays for what happened, not for the length.

    nodes: contents known so far, from the root on; they may reach beyond `pages`, since a content that was evicted may
    be published again. They are held, so that tokens are compared once only.
    """

    __slots__ = ("_seen", "_unowned", "nodes", "pages")

    def __init__(self, root: PrefixNode) -> None:
        self.nodes = [root]
        self.pages: list[int] = []
        self._unowned = bytearray()  # one for each page: 1 where nobody owns it
        self._seen = 0

    @property
    def node(self) -> PrefixNode:
        """The content of the last page; the root when there is none."""
        return self.nodes[len(self.pages)]

    @property
    def num_unowned(self) -> int:
        """Pages that nobody owns, so that the pool counts them as available."""
        return self._unowned.count(1)

    def refresh(self, pool: PagePool, sequence: Sequence, most: int) -> None:
        """Makes it what a look-up of at most `most` pages would find now."""
        self._follow(pool)
        pages, nodes, size = self.pages, self.nodes, pool.page_size
        for i in range(len(pages), most):
            if i + 1 == len(nodes):
                child = pool.prefixes.find(nodes[i], sequence.tokens(i * size, (i + 1) * size))
                if child is None:
                    return
                nodes.append(child)
            page = pool.lookup(nodes[i + 1])
            if page is None:
                return
            pages.append(page)
            self._unowned.append(pool.is_available(page))

    def _follow(self, pool: PagePool) -> None:
        pages, unowned = self.pages, self._unowned
        changes = pool.changes.since(self._seen, len(pages))
        self._seen = pool.changes.end
        if changes is None:
            pages.clear()
            unowned.clear()
            return
        for page, depth, what in changes:
            i = depth - 1
            if i < len(pages) and pages[i] == page:
                if what == FORGOTTEN:
                    del pages[i:], unowned[i:]
                else:
                    unowned[i] = what
