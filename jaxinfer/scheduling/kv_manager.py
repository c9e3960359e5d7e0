"""Page tables of sequences: growth, prefix hits, publication of full pages, release."""

from __future__ import annotations

from jaxinfer.scheduling.page_pool import PagePool, PrefixNode
from jaxinfer.scheduling.plan import PlanRow, TableWrite
from jaxinfer.scheduling.prefix_hit import PrefixHit
from jaxinfer.scheduling.request import Sequence


class KVManager:
    """Keeps sequences' page tables in a pool. Every kv slot a step may write is taken here, before dispatch."""

    def __init__(self, pool: PagePool, *, enable_prefix_caching: bool = True) -> None:
        self.pool = pool
        self.page_size = pool.page_size
        self.caching = enable_prefix_caching

    def pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def root(self, sequence: Sequence) -> PrefixNode:
        return self.pool.prefixes.root((sequence.request.salt, sequence.regime))

    def find_prefix(self, sequence: Sequence, new: int | None = None) -> PrefixHit:
        """The longest prefix of a waiting sequence that is there to be shared, as of now; remembered with it.

        At least one token is always left to compute, since its hidden state is what sampling needs. new: look at no
        more than so many pages that were not looked at before; the prefix may then be longer than what is found.
        """
        hit = sequence.hit
        if hit is None or hit.regime != sequence.regime:
            hit = sequence.hit = PrefixHit(self.root(sequence), sequence.regime)
        # Prompt log-probabilities need every position's hidden state, so those requests compute everything.
        if self.caching and sequence.request.params.prompt_logprobs is None:
            hit.refresh(self.pool, sequence, (sequence.num_tokens - 1) // self.page_size, new)
        return hit

    def admit(self, sequence: Sequence, hit: PrefixHit) -> None:
        """Gives a sequence without pages the pages of its prefix hit, which `find_prefix` has just found."""
        self.pool.retain(hit.pages)
        sequence.pages = list(hit.pages)
        sequence.request.tenant.pages += len(hit.pages)
        sequence.node = hit.node
        sequence.committed = len(hit.pages)
        sequence.num_computed = len(hit.pages) * self.page_size
        sequence.hit = None

    def lacks(self, sequence: Sequence) -> int:
        """How many pages its tokens need beyond those it holds."""
        return max(0, self.pages_for(sequence.num_tokens) - len(sequence.pages))

    def shortfall(self, sequence: Sequence, num_tokens: int) -> int:
        """How many more pages than available it takes to hold `num_tokens` tokens (0: `extend` will succeed)."""
        return max(0, self.pages_for(num_tokens) - len(sequence.pages) - self.pool.available)

    def extend(self, sequence: Sequence, num_tokens: int) -> tuple[TableWrite, ...]:
        """Takes the pages still missing for `num_tokens` tokens; returns where they stand."""
        held = len(sequence.pages)
        missing = self.pages_for(num_tokens) - held
        if missing <= 0:
            return ()
        pages = self.pool.allocate(missing)
        sequence.pages += pages
        sequence.request.tenant.pages += missing
        return tuple([TableWrite(0, held + i, page) for i, page in enumerate(pages)])

    def commit(self, sequence: Sequence, row: PlanRow, accepted: int) -> None:
        """Publishes the pages that the row filled, once its step has run; accepted: of the tokens that it draws.

        Where none of them is, the row's last token will be computed again. A page is published only if it is still the
        sequence's own: a preemption in between has given it away.
        """
        if not self.caching or row.residency != sequence.residency:
            return
        size, prefixes = self.page_size, self.pool.prefixes
        node = sequence.node if sequence.node is not None else self.root(sequence)
        for i in range(sequence.committed, (row.start + row.length - (not accepted and row.draws > 0)) // size):
            node = prefixes.child(node, sequence.tokens(i * size, (i + 1) * size))
            self.pool.publish(sequence.pages[i], node)
            sequence.committed = i + 1
        sequence.node = node

    def release(self, sequence: Sequence) -> None:
        """Gives all pages back. Safe with a step in flight that still writes to them: steps run in dispatch order on
        donated KV, so whoever gets the pages next writes later."""
        self.pool.release(reversed(sequence.pages))
        sequence.request.tenant.pages -= len(sequence.pages)
        sequence.pages = []
        sequence.node = None
        sequence.committed = 0
        sequence.num_computed = 0
        sequence.residency += 1
