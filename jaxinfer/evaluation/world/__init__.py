"""A small world that text is made from: names, words, story plots. The same random state gives the same text."""

from __future__ import annotations

import functools
import random

from jaxinfer.evaluation.item import is_held_out
from jaxinfer.evaluation.world.stories import Story, StoryTeller

__all__ = ["Story", "StoryTeller", "draw_story", "held_out_stories", "teller"]


@functools.cache
def teller() -> StoryTeller:
    """The one story teller; its plots are read once."""
    return StoryTeller()


def draw_story(rng: random.Random, *, held_out: bool) -> Story:
    """A story of one side: the hash of its text decides."""
    while True:
        story = teller().story(rng)
        if is_held_out(story.text) == held_out:
            return story


def held_out_stories(count: int, seed: int = 0) -> list[str]:
    """Stories that training never sees. Fewer are a prefix of more."""
    rng = random.Random(f"held out stories {seed}")
    return [draw_story(rng, held_out=True).text for _ in range(count)]
