"""Contents of pages: a page's token ids behind those of all pages before it, each an object that exists once."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import Protocol
from weakref import ref

from jaxinfer.scheduling.step_plan import NULL_PAGE


class TokenSource(Protocol):
    """A text whose prefix is looked up."""

    def tokens(self, start: int, end: int) -> tuple[int, ...]:
        """The ids at positions start to end."""
        ...


class PrefixNode:
    """The content of one full page in its context. Interned by `PrefixTable`; identity is equality.

    depth: pages from the start of the text to this one, which counts; 0 is a root. page: the one that is found by it,
    the null page when there is none. growth: goes up whenever a content that follows this one gets a page.
    """

    __slots__ = ("__weakref__", "depth", "growth", "page", "parent", "token_ids")

    def __init__(self, parent: PrefixNode | None, token_ids: tuple[Hashable, ...]) -> None:
        self.parent = parent
        self.token_ids = token_ids
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.growth = 0
        self.page = NULL_PAGE


_Key = tuple[int, tuple[Hashable, ...]]


class _NodeRef(ref[PrefixNode]):
    """A weak reference that knows its key in the table."""

    __slots__ = ("key",)
    key: _Key


class PrefixTable:
    """Interns prefix nodes. Entries live as long as a page, a sequence or a child node refers to them."""

    _SHARDS = 256  # by parent: growing one large dict would stop everything for as long as the pool is large

    def __init__(self) -> None:
        # The key holds the parent by id: safe because the value (the node) keeps its parent alive. Plain dicts of weak
        # references: WeakValueDictionary does in Python what a look-up of a long prompt does for each of its pages.
        self._shards: list[dict[_Key, _NodeRef]] = [{} for _ in range(self._SHARDS)]

        def remove(dead: ref[PrefixNode], shards: list[dict[_Key, _NodeRef]] = self._shards) -> None:
            assert isinstance(dead, _NodeRef)
            shard = shards[(dead.key[0] >> 5) % len(shards)]
            if shard.get(dead.key) is dead:
                del shard[dead.key]

        self._remove = remove

    def __iter__(self) -> Iterator[PrefixNode]:
        # Most shards of a small table are empty.
        entries = (entry for shard in filter(None, self._shards) for entry in list(shard.values()))
        return (node for entry in entries if (node := entry()) is not None)

    def root(self, salt: Hashable) -> PrefixNode:
        """The empty prefix under a salt (tenant, adapter, model, RoPE variant)."""
        return self._intern(None, (salt,))

    def child(self, parent: PrefixNode, token_ids: Sequence[int]) -> PrefixNode:
        return self._intern(parent, tuple(token_ids))

    def find(self, parent: PrefixNode, token_ids: Sequence[int]) -> PrefixNode | None:
        of = id(parent)
        found = self._shards[(of >> 5) % self._SHARDS].get((of, tuple(token_ids)))
        return None if found is None else found()

    def _intern(self, parent: PrefixNode | None, token_ids: tuple[Hashable, ...]) -> PrefixNode:
        key = (id(parent), token_ids)
        shard = self._shards[(key[0] >> 5) % self._SHARDS]
        found = shard.get(key)
        node = None if found is None else found()
        if node is None:
            node = PrefixNode(parent, token_ids)
            entry = shard[key] = _NodeRef(node, self._remove)
            entry.key = key
        return node
