"""Words that fill templates, and the share of each list that training never sees."""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jaxinfer.evaluation.item import Split, is_held_out

_DATA = Path(__file__).parent / "data"
_LISTS = tomllib.loads((_DATA / "pools.toml").read_text(encoding="utf-8"))
FIRST_NAMES, SURNAMES, CITIES, OBJECTS, COLORS, JOBS, FOODS, LIST_WORDS = (
    tuple(_LISTS[name].split())
    for name in ("first_names", "surnames", "cities", "objects", "colors", "jobs", "foods", "list_words")
)
_ONSETS, _VOWELS, _CODAS = (_LISTS[name].split(" ") for name in ("onsets", "vowels", "codas"))  # two codas are empty
_STRANGERS = 0.5  # share of training's fillers that stand on no list


@cache
def split_pool(pool: tuple[str, ...], split: Split) -> tuple[str, ...]:
    """The part of a list that a split owns: a word's hash decides.

    A word that training may not use as a filler, but that its stories use, is in neither part: it is not unseen.
    """
    if split == "train":
        return tuple(word for word in pool if not is_held_out(f"filler {word}"))
    return tuple(word for word in pool if is_held_out(f"filler {word}") and word not in _story_vocabulary())


@cache
def _story_vocabulary() -> frozenset[str]:
    """Every word, names included, that the stories can use."""
    files = (*_DATA.glob("plots_*.toml"), _DATA / "words.toml")
    return frozenset(re.findall(r"\w+", " ".join(path.read_text(encoding="utf-8") for path in files)))


@cache
def world_words() -> tuple[str, ...]:
    """Every word of the stories that training may use as a filler."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(_DATA.glob("plots_*.toml")))
    words = sorted(set(re.findall(r"\b[a-z]{3,}\b", re.sub(r"\{[^}]*\}", "", text))))
    return split_pool(tuple(words), "train")


def pick(rng: random.Random, pool: tuple[str, ...], split: Split) -> str:
    """One word for a place in a template.

    Evaluation takes every other word from the part of the list that training never sees. Training has the other part,
    and strangers that stand on no list, so that a model learns to copy whatever stands in a place.
    """
    known, held_out = split_pool(pool, "train"), split_pool(pool, "held_out")
    if split == "held_out":
        return rng.choice(held_out if held_out and rng.random() < 0.5 else known)
    if rng.random() >= _STRANGERS:
        return rng.choice(known)
    while (word := _stranger(rng, pool, known)) in held_out:
        pass
    return word


def _stranger(rng: random.Random, pool: tuple[str, ...], known: tuple[str, ...]) -> str:
    if pool[0][0].islower() and rng.random() < 0.7:
        return rng.choice(world_words())
    return spliced(rng, known) if rng.random() < 0.5 else invented(rng, capital=pool[0][0].isupper())


def spliced(rng: random.Random, words: tuple[str, ...]) -> str:
    """The front of one word and the back of another one."""
    front, back = rng.choice(words), rng.choice(words)
    return front[: rng.randint(2, max(2, len(front) - 1))] + back[-rng.randint(2, max(2, len(back) - 1)) :]


def pick_some(rng: random.Random, pool: tuple[str, ...], split: Split, count: int) -> list[str]:
    """`count` different words."""
    words: dict[str, None] = {}
    while len(words) < count:
        words[pick(rng, pool, split)] = None
    return list(words)


def invented(rng: random.Random, *, capital: bool) -> str:
    """A word that means nothing, from one to three syllables: there are millions."""
    syllables = [rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(rng.choice((1, 2, 2, 3)))]
    word = "".join(syllables) + rng.choice(_CODAS)
    return word.capitalize() if capital else word


def person(rng: random.Random, split: Split) -> str:
    """A first name."""
    return pick(rng, FIRST_NAMES, split)


def people(rng: random.Random, split: Split, count: int) -> list[str]:
    """Different first names."""
    return pick_some(rng, FIRST_NAMES, split, count)


def code(rng: random.Random, length: int, alphabet: Sequence[str] = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789") -> str:
    """A string without meaning, such as K7QX2."""
    return "".join(rng.choice(alphabet) for _ in range(length))
