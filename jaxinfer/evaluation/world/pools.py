"""Words that fill templates, and the share of each list that training never sees."""

from __future__ import annotations

import random
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jaxinfer.evaluation.item import Split, is_held_out

_LISTS = tomllib.loads((Path(__file__).parent / "data" / "pools.toml").read_text(encoding="utf-8"))
FIRST_NAMES, SURNAMES, CITIES, OBJECTS, COLORS, JOBS, FOODS, LIST_WORDS = (
    tuple(_LISTS[name].split())
    for name in ("first_names", "surnames", "cities", "objects", "colors", "jobs", "foods", "list_words")
)
_CONSONANTS = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"]
_VOWELS = ["a", "e", "i", "o", "u"]


@cache
def split_pool(pool: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """The part of a list that a split owns: a word's hash decides."""
    return tuple(word for word in pool if is_held_out(f"filler {word}") == (split == "held_out"))


def pick(rng: random.Random, pool: tuple[str, ...], split: Split) -> str:
    """One word. Training sees its own part only; evaluation takes every other word from the part training never saw."""
    held_out = split_pool(pool, "held_out") if split == "held_out" and rng.random() < 0.5 else ()
    return rng.choice(held_out or split_pool(pool, "train"))


def pick_some(rng: random.Random, pool: tuple[str, ...], split: Split, count: int) -> list[str]:
    """`count` different words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[pick(rng, pool, split)] = None
    return list(words)


def invented_name(rng: random.Random) -> str:
    """A name that nobody has, from two or three syllables: there are hundreds of thousands."""
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.choice((2, 2, 3)))]
    return ("".join(syllables) + rng.choice(("", "n", "r", "s", "l"))).capitalize()


def person(rng: random.Random, split: Split) -> str:
    """A first name, one in five invented."""
    return invented_name(rng) if rng.random() < 0.2 else pick(rng, FIRST_NAMES, split)


def people(rng: random.Random, split: Split, count: int) -> list[str]:
    """Different first names."""
    names: dict[str, None] = {}
    while len(names) < count:
        names[person(rng, split)] = None
    return list(names)


def code(rng: random.Random, length: int, alphabet: Sequence[str] = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789") -> str:
    """A string without meaning, such as K7QX2."""
    return "".join(rng.choice(alphabet) for _ in range(length))
