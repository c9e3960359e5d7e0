"""What is asked of a model: items of kinds, items of the user's own, and stories."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxinfer.evaluation.item import Kind, held_out_items
from jaxinfer.evaluation.items import Task

Kinds = Callable[[], Mapping[str, Kind]]
Stories = Callable[[int, int], list[str]]
"""(how many, seed) -> held-out stories."""


def shipped_kinds() -> Mapping[str, Kind]:
    """The tasks of `jaxinfer.evaluation.tasks`, {name: kind}."""
    from jaxinfer.evaluation.tasks import KINDS

    return KINDS


def shipped_stories(count: int, seed: int) -> list[str]:
    """Stories that no model was trained on, see `jaxinfer.evaluation.world`."""
    from jaxinfer.evaluation.world import held_out_stories

    return held_out_stories(count, seed)


@dataclass(frozen=True)
class Questions:
    """Attributes:
    kinds: {name: kind}, of which items are drawn.
    own: {name: task}, the user's own items, all of which are asked.
    stories: writes the texts.
    limit: items of each kind.
    num_texts: stories to score; 0 scores none.
    seed: of items and stories.
    """

    kinds: Mapping[str, Kind]
    own: Mapping[str, Task]
    stories: Stories
    limit: int
    num_texts: int
    seed: int

    def texts(self) -> list[str]:
        return self.stories(self.num_texts, self.seed) if self.num_texts else []

    def draw(self) -> dict[str, Task]:
        """Takes seconds. Raises ValueError when a kind has fewer items than `limit`."""
        drawn = {name: Task(kind, held_out_items(kind, self.limit, self.seed)) for name, kind in self.kinds.items()}
        return {**drawn, **self.own}
