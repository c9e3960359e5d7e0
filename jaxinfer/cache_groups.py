"""Which memory of the KV pool each layer uses. Standard library only.

Layers that keep the same of a token (`CacheSpec`) form a group, and a group's page tables are filled and emptied alike:
layers with a sliding window give pages back that others still need. All page ids come from one pool and name memory of
one size, `depth` layers of one page, so that whoever needs pages can have those that others gave back. A group of more
than `depth` layers has several page tables; of its last one some layers' memory may be unused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOST_TABLES = 8  # each is planned, sent to the device and read there


@dataclass(frozen=True)
class CacheSpec:
    """What a layer keeps of each token of a sequence.

    Attributes:
        kv_heads: heads of its keys, and of its values, as the config counts them.
        head_dim: elements of a head.
        window: tokens that a query sees, itself included; None: all before it.
    """

    kv_heads: int
    head_dim: int
    window: int | None = None

    def first_kept(self, position: int) -> int:
        """The first position that a query at `position`, or any later one, still sees."""
        return 0 if self.window is None else max(0, position - self.window + 1)


@dataclass(frozen=True)
class CacheGroup:
    """Layers of one spec. tables: numbers of its page tables; each takes a page id wherever the group needs a page."""

    spec: CacheSpec
    layers: tuple[int, ...]
    tables: tuple[int, ...]


@dataclass(frozen=True)
class CacheGroups:
    """A model's groups. depth: layers whose keys and values a page has room for, which is the number of pool arrays."""

    groups: tuple[CacheGroup, ...]
    depth: int

    @classmethod
    def of(cls, specs: Sequence[CacheSpec | None]) -> CacheGroups:
        """specs: of every layer, in order; None for one that keeps nothing. Groups keep the order in which their specs
        come first."""
        layers: dict[CacheSpec, list[int]] = {}
        for layer, spec in enumerate(specs):
            if spec is not None:
                layers.setdefault(spec, []).append(layer)
        depth = _depth({spec: len(members) for spec, members in layers.items()})
        groups, tables = [], 0
        for spec, members in layers.items():
            count = -(-len(members) // depth)
            groups.append(CacheGroup(spec, tuple(members), tuple(range(tables, tables + count))))
            tables += count
        return cls(tuple(groups), depth)

    @property
    def num_tables(self) -> int:
        return sum(len(group.tables) for group in self.groups)

    def places(self) -> dict[int, tuple[int, int]]:
        """Of every layer that keeps something: the number of its page table, and that of the pool array which holds its
        keys and values."""
        return {
            layer: (group.tables[i // self.depth], i % self.depth)
            for group in self.groups
            for i, layer in enumerate(group.layers)
        }


def _depth(sizes: dict[CacheSpec, int]) -> int:
    """Wastes least of what grows with the length of a sequence, then of the rest, with few tables; sizes: layers."""

    def room(specs: Iterable[CacheSpec], depth: int) -> int:
        return sum(-(-sizes[spec] // depth) * depth for spec in specs)

    unbounded = [spec for spec in sizes if spec.window is None]
    most = max(sizes.values())
    possible = [d for d in range(1, most + 1) if room(sizes, d) <= d * max(MOST_TABLES, len(sizes))]
    return min(possible, key=lambda d: (room(unbounded, d), room(sizes, d), -d))


UNIFORM = CacheGroups.of([CacheSpec(1, 1)])
"""One page table for all layers: where nobody says otherwise."""
