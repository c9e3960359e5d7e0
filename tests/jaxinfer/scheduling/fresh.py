"""The scheduler without memory: every prefix is looked up anew, page by page, and nobody who waits is parked."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from jaxinfer.cache_groups import CacheGroups
from jaxinfer.scheduling.fairness import Fairness
from jaxinfer.scheduling.group_hit import GroupHit
from jaxinfer.scheduling.kv_manager import KVManager
from jaxinfer.scheduling.prefix_hit import PrefixHit
from jaxinfer.scheduling.prefix_table import PrefixNode
from jaxinfer.scheduling.request import Sequence
from jaxinfer.scheduling.tenants import Tenants
from tests.jaxinfer.scheduling.simulator import World


def contents(kv: KVManager, sequence: Sequence, group: int) -> list[PrefixNode]:
    """A group's contents of a waiting sequence's first tokens, from the root on, as far as anybody has named them."""
    nodes = [kv.root(sequence, group)]
    if kv.caching and sequence.request.params.prompt_logprobs is None:
        tokens = [*sequence.request.prompt, *sequence.output_ids]
        for end in range(kv.page_size, sequence.num_tokens, kv.page_size):
            node = kv.pool.prefixes.find(nodes[-1], tokens[end - kv.page_size : end])
            if node is None:
                break
            nodes.append(node)
    return nodes


def look_up(kv: KVManager, sequence: Sequence) -> tuple[list[int], list[PrefixNode], bytes]:
    """Pages and contents (from the root on) of a waiting sequence's longest prefix, and which pages nobody owns."""
    nodes = contents(kv, sequence, 0)
    pages = list(takewhile(bool, (node.page for node in nodes[1:])))
    return pages, nodes[: len(pages) + 1], bytes(kv.pool._owners[page] == 0 for page in pages)


def look_up_groups(kv: KVManager, groups: CacheGroups, sequence: Sequence) -> tuple[int, list[list[PrefixNode]]]:
    """How many pages of a waiting sequence's tokens every group can share, and all contents that are known."""
    chains = [contents(kv, sequence, group) for group in range(len(groups.groups))]
    for length in range(min(map(len, chains)) - 1, 0, -1):
        firsts = [group.spec.first_kept(length * kv.page_size) // kv.page_size for group in groups.groups]
        if all(
            node.page for first, nodes in zip(firsts, chains, strict=True) for node in nodes[first + 1 : length + 1]
        ):
            return length, chains
    return 0, chains


class FreshKV(KVManager):
    groups: CacheGroups

    def find_prefix(self, sequence: Sequence, new: int | None = None) -> PrefixHit | GroupHit:
        hit = sequence.hit = self.new_hit(sequence)
        if isinstance(hit, PrefixHit):
            hit.pages, hit.nodes, hit._unowned = look_up(self, sequence)
            return hit
        hit.length, chains = look_up_groups(self, self.groups, sequence)
        for chain, nodes in zip(hit._chains, chains, strict=True):
            chain.nodes, chain.pages = nodes, [node.page for node in nodes[1:]]
            chain.unowned = bytearray(self.pool._owners[page] == 0 for page in chain.pages)
        return hit


class FreshTenants(Tenants):
    def park(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.enqueue(sequence)


class FreshWorld(World):
    def __init__(self, *args: Any, **sizes: Any) -> None:
        super().__init__(*args, **sizes)
        limits = self.limits
        self.scheduler.kv = FreshKV(
            self.scheduler.pool,
            groups=limits.cache_groups,
            max_chunk=limits.max_num_batched_tokens,
            max_tokens=limits.max_model_len,
            enable_prefix_caching=limits.enable_prefix_caching,
            pins=self.scheduler.kv.pins,
        )
        self.scheduler.kv.groups = limits.cache_groups
        self.scheduler._tenants = FreshTenants(burst=limits.max_model_len)
        self.scheduler._fairness = Fairness(self.scheduler._tenants)
