"""One question with a known answer, and a kind of question. No jax."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Split = Literal["train", "held_out"]
_HELD_OUT_SHARE = 5  # one key in so many belongs to evaluation


@dataclass(frozen=True)
class Item:
    """A question in chat form whose right answer is known.

    Attributes:
        kind: name of the kind of task.
        key: what is asked, whatever the wording: decides the split, so a rephrased question cannot leak.
        messages: the prompt as chat messages; the last one is the user's.
        answer: the right answer, in the form that the kind's `extract` gives.
        response: what a good assistant says, with its working; the demo model is trained on it.
        working: what a model that may think first writes before its answer, where that is not in the response.
        tools: functions that the model is offered, as clients describe them to its chat template.
        variables: further variables of the chat template.
        max_tokens: room that a response may take.
        depth: for recall, how many words lie between the fact and the question (at least as many tokens); else 0.
    """

    kind: str
    key: str
    messages: tuple[Mapping[str, str], ...]
    answer: str
    response: str
    max_tokens: int = 96
    depth: int = 0
    working: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def thought(self) -> tuple[str, str]:
        """The working and the answer behind it: the response's last sentence, where it has a working of its own."""
        if self.working:
            return self.working, self.response
        working, stop, said = self.response.rpartition(". ")
        return working + stop.strip(), said


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        name: as on the command line, such as "addition".
        summary: one line for people.
        make: draws one item for a split; fillers of the held-out split may be unknown to training.
        extract: the answer in a response, in canonical form, or None when there is none to be found.
        check: for answers that can be right in many ways.
    """

    name: str
    summary: str
    make: Callable[[random.Random, Split], Item]
    extract: Callable[[str], str | None]
    check: Callable[[Item, str], bool] | None = None

    def is_right(self, item: Item, response: str) -> bool:
        """Whether the response is right: by `check` if the kind has one, else whether its answer is the item's."""
        return self.check(item, response) if self.check is not None else self.extract(response) == item.answer


def is_held_out(key: str) -> bool:
    """Whether a key belongs to evaluation: a hash decides, so both sides agree without a list."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT_SHARE == 0


def draw(kind: Kind, rng: random.Random, split: Split) -> Item:
    """One item of the split: draws until the key's hash says so."""
    while True:
        item = kind.make(rng, split)
        if is_held_out(item.key) == (split == "held_out"):
            return item


def held_out_items(kind: Kind, count: int, seed: int = 0) -> list[Item]:
    """`count` held-out items with different keys. The same seed gives the same items; fewer are a prefix of more.

    Raises:
        ValueError: the kind does not have so many.
    """
    rng = random.Random(f"held out {kind.name} {seed}")
    items: dict[str, Item] = {}
    misses = 0
    while len(items) < count:
        item = draw(kind, rng, "held_out")
        misses = misses + 1 if item.key in items else 0
        if misses > 1000:
            raise ValueError(f"kind {kind.name} has only about {len(items)} held-out items; {count} were asked for")
        items.setdefault(item.key, item)
    return list(items.values())
