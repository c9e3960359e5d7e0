"""The scheduler without memory: every prefix is looked up anew, page by page, and nobody who waits is parked."""

from __future__ import annotations

from typing import Any

from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.page_pool import PrefixNode
from jaxinfer.scheduling.prefix_hit import PrefixHit
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.tenants import Tenants
from tests.jaxinfer.scheduling.simulator import World


def look_up(kv: KVManager, sequence: Sequence) -> tuple[list[int], list[PrefixNode], bytes]:
    """Pages and contents (from the root on) of a waiting sequence's longest prefix, and which pages nobody owns."""
    nodes, pages = [kv.root(sequence)], []
    if kv.caching and sequence.request.params.prompt_logprobs is None:
        tokens = [*sequence.request.prompt, *sequence.output_ids]
        for end in range(kv.page_size, sequence.num_tokens, kv.page_size):
            node = kv.pool.prefixes.find(nodes[-1], tokens[end - kv.page_size : end])
            page = None if node is None else kv.pool.lookup(node)
            if node is None or page is None:
                break
            nodes.append(node)
            pages.append(page)
    return pages, nodes, bytes(kv.pool._owners[page] == 0 for page in pages)


class FreshKV(KVManager):
    def find_prefix(self, sequence: Sequence, new: int | None = None) -> PrefixHit:
        hit = sequence.hit = PrefixHit(self.root(sequence), sequence.regime)
        hit.pages, hit.nodes, hit._unowned = look_up(self, sequence)
        return hit


class FreshTenants(Tenants):
    def park(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.enqueue(sequence)


class FreshWorld(World):
    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        limits = self.limits
        self.scheduler.kv = FreshKV(self.scheduler.pool, enable_prefix_caching=limits.enable_prefix_caching)
        self.scheduler._tenants = FreshTenants(burst=limits.max_model_len)
