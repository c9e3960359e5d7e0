"""Page tables of sequences: growth, windows, prefix hits, publication of full pages, release."""

from __future__ import annotations

from jaxinfer.cache_groups import UNIFORM, CacheGroups
from jaxinfer.scheduling.cache_shape import CacheShape
from jaxinfer.scheduling.group_hit import GroupHit
from jaxinfer.scheduling.page_pool import PagePool
from jaxinfer.scheduling.pins import Pins
from jaxinfer.scheduling.prefix_hit import PrefixHit
from jaxinfer.scheduling.prefix_table import PrefixNode
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.step_plan import NULL_PAGE, PlanRow, TableWrite


class KVManager:
    """Keeps sequences' page tables in a pool. Every kv slot a step may write is taken here, before dispatch.

    A sequence has one list of pages for each group of layers, all of them of one length. Groups with several page
    tables list bundles (see PagePool). A group with a window has the null page where it has left pages behind.
    """

    def __init__(
        self,
        pool: PagePool,
        *,
        groups: CacheGroups = UNIFORM,
        max_chunk: int,
        max_tokens: int,
        enable_prefix_caching: bool = True,
        pins: Pins | None = None,
    ) -> None:
        """max_chunk: tokens of a row, at most. max_tokens: of a sequence, at most. pins: without it nothing is."""
        self.pool = pool
        self.page_size = pool.page_size
        self.shape = CacheShape(groups, pool.page_size, max_chunk, max_tokens)
        self.windows = self.shape.windows
        self.caching = enable_prefix_caching
        self.pins = pins
        self._sizes = self.shape.sizes
        self._single = self._sizes == (1,) and not self.windows
        self._leaves_at = self.shape.leaves_at([0] * len(self._sizes))  # of a sequence that has left nothing
        pool.tells_published = not self._single

    def root(self, sequence: Sequence, group: int = 0) -> PrefixNode:
        """The empty prefix of a sequence: every group has contents of its own."""
        salt = (sequence.request.salt, sequence.rope_variant)
        return self.pool.prefixes.root((*salt, group) if group else salt)

    def find_prefix(self, sequence: Sequence, new: int | None = None) -> PrefixHit | GroupHit:
        """The longest prefix of a waiting sequence that is there to be shared, as of now; remembered with it.

        At least one token is always left to compute, since its hidden state is what sampling needs. new: look at no
        more than so many pages that were not looked at before; the prefix may then be longer than what is found.
        """
        hit = sequence.hit
        if hit is None or hit.rope_variant != sequence.rope_variant:
            hit = sequence.hit = self.new_hit(sequence)
        # Prompt log-probabilities need every position's hidden state, so those requests compute everything.
        if self.caching and sequence.request.params.prompt_logprobs is None:
            hit.refresh(self.pool, sequence, (sequence.num_tokens - 1) // self.page_size, new)
        return hit

    def new_hit(self, sequence: Sequence) -> PrefixHit | GroupHit:
        """A hit of which nothing is known yet."""
        if self._single:
            return PrefixHit(self.root(sequence), sequence.rope_variant)
        roots = [self.root(sequence, group) for group in range(len(self._sizes))]
        return GroupHit(roots, sequence.rope_variant, self.shape)

    def admit(self, sequence: Sequence, hit: PrefixHit | GroupHit) -> None:
        """Gives a sequence without pages the pages of its prefix hit, which `find_prefix` has just found."""
        length, tables = hit.length, hit.tables()
        held = 0
        for size, table in zip(self._sizes, tables, strict=True):
            pages = table if self._single else list(filter(None, table))
            self.pool.retain(pages)
            held += size * len(pages)
        sequence.tables, sequence.nodes = tables, hit.last_nodes()
        sequence.first = [self.shape.first_page(group, length) for group in range(len(tables))]
        sequence.leaves_at = self.shape.leaves_at(sequence.first)
        sequence.held = held
        sequence.request.tenant.pages += held
        sequence.committed = length
        sequence.num_computed = sequence.capacity = length * self.page_size
        sequence.hit = None
        if self.pins is not None and length:
            if self.pins:
                self.pins.hit(sequence.request.tenant.name, sequence.nodes[0])
            self._pin_reached(sequence)

    def needs(self, num_tokens: int) -> int:
        """The most pages that a sequence of so many tokens holds at once."""
        pages = -(-num_tokens // self.page_size)
        if self._single:
            return pages
        return self.shape.most_pages(pages)

    def lacks(self, sequence: Sequence, num_tokens: int) -> int:
        """How many pages so many tokens of a running sequence need beyond those it holds."""
        pages = -(-num_tokens // self.page_size)
        if self._single:
            return max(0, pages - sequence.held)
        held = sequence.capacity // self.page_size
        more = max(0, pages - held) * self.shape.whole
        for window in self.windows:
            first = sequence.first[window.group]
            more += window.size * max(0, min(pages - first, window.most) - (held - first))
        return more

    def missing(self, sequence: Sequence) -> int:
        """The available pages that a waiting sequence's admission takes: those without a prefix hit, and hits that
        nobody owns now."""
        hit = self.find_prefix(sequence)
        pages = -(-sequence.num_tokens // self.page_size)
        if isinstance(hit, PrefixHit):
            return pages - len(hit.pages) + hit.num_unowned
        found, unowned = hit.length, hit.unowned()
        return sum(
            size * min(pages - found + count, most)
            for size, count, most in zip(self._sizes, unowned, self.shape.most, strict=True)
        )

    def shortfall(self, sequence: Sequence, num_tokens: int) -> int:
        """How many more pages than available it takes to hold `num_tokens` tokens (0: `extend` will succeed)."""
        pages = -(-num_tokens // self.page_size) - sequence.capacity // self.page_size
        return max(0, pages * self.shape.each - self.pool.available)

    def extend(self, sequence: Sequence, num_tokens: int) -> tuple[TableWrite, ...]:
        """Takes the pages still missing for `num_tokens` tokens; returns what changed in the page tables."""
        if num_tokens <= sequence.capacity:
            return self._told(sequence)
        size = self.page_size
        held = sequence.capacity // size
        more = -(-num_tokens // size) - held
        sequence.capacity = (held + more) * size
        sequence.held += more * self.shape.each
        sequence.request.tenant.pages += more * self.shape.each
        if self._single:
            pages = self.pool.allocate(more)
            sequence.tables[0] += pages
            return tuple([TableWrite(0, held + i, page) for i, page in enumerate(pages)])
        writes = list(self._told(sequence))
        for group, count in enumerate(self._sizes):
            pages = self.pool.allocate(more) if count == 1 else self.pool.allocate_bundles(more, count)
            sequence.tables[group] += pages
            for i, page in enumerate(pages, held):
                writes += self._writes(group, i, self.pool.bundle(page))
        return tuple(writes)

    def _told(self, sequence: Sequence) -> tuple[TableWrite, ...]:
        """What the sequence has left behind, of which the device is told now."""
        writes, sequence.left_behind = tuple(sequence.left_behind), []
        return writes

    def _writes(self, group: int, position: int, pages: tuple[int, ...]) -> list[TableWrite]:
        tables = self.shape.tables[group]
        return [TableWrite(table, position, page) for table, page in zip(tables, pages, strict=True)]

    def leave_behind(self, sequence: Sequence) -> None:
        """Gives the pages back that the sequence's next row, and all later ones, do not see.

        The steps that read them were dispatched, so that whoever gets them next writes later. The row that is planned
        now tells the device, with what `extend` returns. What is full is published before, although the step that
        filled it may still run: another one that finds it reads it later.
        """
        start = sequence.num_computed
        for window in self.windows:
            group = window.group
            first, kept = sequence.first[group], self.shape.first_kept(group, start)
            if kept <= first:
                continue
            if self.caching:
                self._publish(sequence, group, kept)
            table = sequence.tables[group]
            gone = table[first:kept]
            self.pool.release(reversed(gone))
            table[first:kept] = [NULL_PAGE] * len(gone)
            sequence.first[group] = kept
            sequence.held -= window.size * len(gone)
            sequence.request.tenant.pages -= window.size * len(gone)
            for i in range(first, kept):
                sequence.left_behind += self._writes(group, i, (NULL_PAGE,) * window.size)
        sequence.leaves_at = self.shape.leaves_at(sequence.first)

    def commit(self, sequence: Sequence, row: PlanRow, accepted: int) -> None:
        """Publishes the pages that the row filled, once its step has run; accepted: of the tokens that it draws.

        Where none of them is, the row's last token will be computed again. A page is published only if it is still the
        sequence's own: a preemption in between has given it away.
        """
        if not self.caching or row.kv_epoch != sequence.kv_epoch:
            return
        full = (row.start + row.length - (not accepted and row.draws > 0)) // self.page_size
        if full > sequence.committed:
            for group in range(len(self._sizes)):
                self._publish(sequence, group, full)
            sequence.committed = full
            self._pin_reached(sequence)

    def _pin_reached(self, sequence: Sequence) -> None:
        """Pins the prefixes that its request wants pinned, as far as they are published."""
        wanted = sequence.request.pins
        while sequence.next_pin < len(wanted):
            tokens, ttl = wanted[sequence.next_pin]
            pages = tokens // self.page_size
            if pages > sequence.committed:
                return
            sequence.next_pin += 1
            sequence.pinned_tokens = max(sequence.pinned_tokens, self._pin(sequence, pages, ttl))

    def pin_answer(self, sequence: Sequence) -> None:
        """Pins all that a sequence has published, where its request wants that."""
        if sequence.request.pin_answer:
            self._pin(sequence, sequence.committed, sequence.request.pin_answer)

    def _pin(self, sequence: Sequence, length: int, ttl: float) -> int:
        """Pins what a hit of `length` pages of the sequence's tokens needs; how many tokens of it were. None where a
        page is gone: with windows it may have been left behind, and was given away since."""
        leaf: PrefixNode | None = None
        pages: list[int] = []
        for group, last in enumerate(sequence.nodes):
            node, first = last, self.shape.first_page(group, length)
            while node is not None and node.depth > length:
                node = node.parent
            if node is None or node.depth < length:
                return 0
            leaf = leaf or node
            found = []
            while node is not None and node.depth > first:
                if not node.page:
                    return 0
                found.append(node.page)
                node = node.parent
            pages += reversed(found)
        if self.pins is None or leaf is None or not pages:
            return 0
        return self.pins.make(sequence.request.tenant.name, leaf, pages, ttl, whole=not self._single)

    def _publish(self, sequence: Sequence, group: int, full: int) -> None:
        """Publishes a group's pages up to the one at `full`, as far as they are not."""
        size, prefixes = self.page_size, self.pool.prefixes
        node, pages = sequence.nodes[group], sequence.tables[group]
        if node is None:
            node = self.root(sequence, group)
        for i in range(node.depth, full):
            node = prefixes.child(node, sequence.tokens(i * size, (i + 1) * size))
            self.pool.publish(pages[i], node)
        sequence.nodes[group] = node

    def release(self, sequence: Sequence) -> None:
        """Gives all pages back. Safe with a step in flight that still writes to them: steps run in dispatch order on
        donated KV, so whoever gets the pages next writes later."""
        if self._single:
            self.pool.release(reversed(sequence.tables[0]) if sequence.tables else ())
        else:
            levels = zip(*map(reversed, sequence.tables), strict=True)
            self.pool.release(page for level in levels for page in level if page)
        sequence.request.tenant.pages -= sequence.held
        groups = len(self._sizes)
        sequence.tables = [[] for _ in range(groups)]
        sequence.nodes = [None] * groups
        sequence.first = [0] * groups
        sequence.leaves_at = self._leaves_at
        sequence.left_behind = []
        sequence.held = sequence.capacity = sequence.committed = sequence.num_computed = 0
        sequence.kv_epoch += 1

    def withdraw(self, sequence: Sequence) -> None:
        """Takes back, from the prefix cache, all that the sequence has computed or read."""
        for group, table in enumerate(sequence.tables):
            self.pool.withdraw(filter(None, table))
            node = sequence.nodes[group]
            while self.windows and node is not None:  # what it has left behind
                self.pool.withdraw_content(node)
                node = node.parent

    def table_columns(self, sequence: Sequence) -> tuple[tuple[int, ...], ...]:
        """A sequence's page tables as the device has them: one for each table number."""
        if self._single:
            return (tuple(sequence.tables[0]),)
        columns: list[tuple[int, ...]] = []
        for size, table in zip(self._sizes, sequence.tables, strict=True):
            if size == 1:
                columns.append(tuple(table))
                continue
            nothing, bundle = (NULL_PAGE,) * size, self.pool.bundle
            columns += (
                zip(*(bundle(page) if page else nothing for page in table), strict=True) if table else [()] * size
            )
        return tuple(columns)
