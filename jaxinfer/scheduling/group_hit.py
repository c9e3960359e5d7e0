"""What is known of a waiting sequence's prefix where layers differ in what they keep."""

from __future__ import annotations

from collections.abc import Sequence

from jaxinfer.scheduling.cache_shape import CacheShape
from jaxinfer.scheduling.page_pool import FORGOTTEN, PUBLISHED, Change, PagePool
from jaxinfer.scheduling.prefix_table import PrefixNode, TokenSource
from jaxinfer.scheduling.step_plan import NULL_PAGE


class _Chain:
    """One group's contents of a sequence's first tokens, as far as anybody knows them, with or without a page.

    nodes: contents from the root on, held so that tokens are compared once only. pages: of all nodes but the root, the
    null page where there is none. there, unowned: for each page 1 where there is one, and where nobody owns it.
    """

    __slots__ = ("growth", "nodes", "pages", "there", "unowned")

    def __init__(self, root: PrefixNode) -> None:
        self.nodes = [root]
        self.pages: list[int] = []
        self.there = bytearray()
        self.unowned = bytearray()
        self.growth = -1  # of the last content, when nothing was found behind it

    def look_again(self, pool: PagePool) -> None:
        self.pages = [node.page for node in self.nodes[1:]]
        self.there = bytearray(map(bool, self.pages))
        self.unowned = bytearray(pool.unowned(self.pages))

    def follow(self, pool: PagePool, changes: list[Change]) -> None:
        pages, nodes = self.pages, self.nodes
        for page, depth, what in changes:
            if depth > len(pages):
                continue
            i = depth - 1
            if (pages[i] == page) if what != PUBLISHED else (nodes[depth].page == page):
                if what in (FORGOTTEN, PUBLISHED):
                    page = pages[i] = nodes[depth].page
                    self.there[i] = page != NULL_PAGE
                self.unowned[i] = pool.unowned((page,))[0]

    def extend(self, pool: PagePool, sequence: TokenSource, most: int, new: int) -> int:
        """Finds up to `new` contents behind the known ones, `most` in all; how many it was."""
        nodes, size, find = self.nodes, pool.page_size, pool.prefixes.find
        known = len(nodes) - 1
        if known >= most or self.growth == nodes[-1].growth:
            return 0
        end, found = min(most, known + new), list[int]()
        while known + len(found) < end:
            i = known + len(found)
            node = find(nodes[-1], sequence.tokens(i * size, (i + 1) * size))
            if node is None:
                self.growth = nodes[-1].growth
                break
            nodes.append(node)
            found.append(node.page)
        self.pages += found
        self.there += bytes(map(bool, found))
        self.unowned += pool.unowned(found)
        return len(found)


class GroupHit:
    """The longest prefix of which every group has all that a query behind it sees.

    Of a group with a window those are the last pages alone, so that there may be gaps before them. The pool's `Changes`
    tell what was published, evicted, owned and given back, so that a step pays for what happened, not for the length.
    """

    __slots__ = ("_chains", "_seen", "_shape", "length", "rope_variant")

    def __init__(self, roots: Sequence[PrefixNode], rope_variant: int, shape: CacheShape) -> None:
        self.rope_variant = rope_variant
        self.length = 0  # pages
        self._chains = [_Chain(root) for root in roots]
        self._shape = shape
        self._seen = -1  # of the pool's changes; -1: never looked

    @property
    def known(self) -> int:
        """Contents that are known, of all groups."""
        return sum(len(chain.nodes) for chain in self._chains)

    def refresh(self, pool: PagePool, sequence: TokenSource, most: int, new: int | None = None) -> None:
        """Makes it what a look-up of at most `most` pages would find now; with `new`, no more than so many pages are
        looked up whose content was not known, and the rest is left to the next call."""
        changed = self._seen != pool.changes.end
        if changed:
            changes = pool.changes.since(self._seen, sum(len(chain.pages) for chain in self._chains))
            self._seen = pool.changes.end
            for chain in self._chains:
                if changes is None:
                    chain.look_again(pool)
                else:
                    chain.follow(pool, changes)
        left = most * len(self._chains) if new is None else new
        for chain in self._chains:
            found = chain.extend(pool, sequence, most, left)
            left -= found
            changed |= found > 0
        if changed:
            self.length = self._longest(most)

    def _longest(self, most: int) -> int:
        shape, chains = self._shape, self._chains
        length = min(most, *(len(chain.pages) for chain in chains))
        group = 0
        while group < len(chains):
            # The last gap in what a query behind `length` pages sees: it is seen from everywhere behind it as well.
            gap = chains[group].there.rfind(0, shape.first_page(group, length), length)
            if gap < 0:
                group += 1
                continue
            whole = shape.first_page(group, length) == 0
            length = chains[group].there.find(0) if whole else gap
            group = 0
        return length

    def tables(self) -> list[list[int]]:
        """Of each group the pages to share, the null page where none is needed."""
        length, tables = self.length, []
        for group, chain in enumerate(self._chains):
            first = self._shape.first_page(group, length)
            tables.append([NULL_PAGE] * first + chain.pages[first:length])
        return tables

    def last_nodes(self) -> list[PrefixNode | None]:
        return [chain.nodes[self.length] for chain in self._chains]

    def unowned(self) -> list[int]:
        """Of each group, how many of the pages to share nobody owns, so that the pool counts them as available."""
        length = self.length
        return [
            chain.unowned.count(1, self._shape.first_page(group, length), length)
            for group, chain in enumerate(self._chains)
        ]
