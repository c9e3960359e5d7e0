"""Short stories: a cast, an opening, the beats of one plot, an ending."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxinfer.evaluation.world.grammar import Bindings, expand
from jaxinfer.evaluation.world.pools import invented

_DATA = Path(__file__).parent / "data"
_FORMS = {"she": ("she", "her", "her", "herself"), "he": ("he", "his", "him", "himself")}
_INVENTED = 0.15  # share of characters with a name that nobody else has
_PARAGRAPH_BREAK = 0.25  # share of beats that start a new line
_SENTENCE_START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")  # not after a closing quote: "Go!" she said.


@dataclass(frozen=True)
class Character:
    """A named character: name, what it is ("fox", "girl"), and the pronoun that picks its forms."""

    name: str
    kind: str
    pronoun: str

    def slots(self, prefix: str) -> dict[str, str]:
        """Pronoun slots under the prefix: "" gives he/his/him, "f" gives fhe/fhis/fhim."""
        he, his, him, himself = _FORMS[self.pronoun]
        return {f"{prefix}he": he, f"{prefix}his": his, f"{prefix}him": him, f"{prefix}himself": himself}


def sentence_case(text: str) -> str:
    """The text with a capital at each start of a sentence: slots such as "the old miller" may stand there."""
    return _SENTENCE_START.sub(lambda match: match.group().upper(), text)


@dataclass(frozen=True)
class Story:
    """A story and who is in it.

    Attributes:
        parts: its beats; the first ones make the opening. Joined with `breaks` they are the text.
        breaks: what stands before each part: nothing, a blank or a newline.
        hero: the main character.
        friend: the other one, or None where the plot keeps the name for later.
    """

    parts: tuple[str, ...]
    breaks: tuple[str, ...]
    hero: Character
    friend: Character | None

    @property
    def text(self) -> str:
        """The whole story."""
        return self.head(len(self.parts))

    def head(self, count: int) -> str:
        """The first parts."""
        pairs = zip(self.breaks[:count], self.parts[:count], strict=True)
        return "".join(gap + part for gap, part in pairs)

    def tail(self, count: int) -> str:
        """What follows the first parts."""
        return self.text[len(self.head(count)) :].lstrip()


class StoryTeller:
    """Makes stories from the grammar in `data/`. The same random state gives the same story."""

    def __init__(self) -> None:
        self._words: dict[str, Any] = tomllib.loads((_DATA / "words.toml").read_text(encoding="utf-8"))
        self.plots: list[dict[str, Any]] = []
        for path in sorted(_DATA.glob("plots_*.toml")):
            self.plots.extend(tomllib.loads(path.read_text(encoding="utf-8"))["plot"])

    @property
    def names(self) -> frozenset[str]:
        """Every name that a character can have, without the invented ones."""
        heroes, animals = self._words["heroes"], self._words["animals"]
        return frozenset((*heroes["she"], *heroes["he"], *animals["she"], *animals["he"]))

    def character(self, rng: random.Random, other_than: str = "") -> Character:
        """A child or an animal whose name differs from `other_than`."""
        while True:
            pronoun = rng.choice(("she", "he"))
            if rng.random() < 0.5:
                kind, names = rng.choice(self._words["people"][pronoun]), self._words["heroes"][pronoun]
            else:
                kind, names = rng.choice(self._words["animals"]["kinds"]), self._words["animals"][pronoun]
            name = invented(rng, capital=True) if rng.random() < _INVENTED else rng.choice(names)
            if name != other_than:
                return Character(name, kind, pronoun)

    def story(self, rng: random.Random) -> Story:
        """One story of about 150 words, paragraphs separated by a newline."""
        plot = rng.choice(self.plots)
        hero = self.character(rng)
        friend = self.character(rng, other_than=hero.name)
        bindings = self._bindings(rng, plot, hero, friend)
        shared = self._words["shared"]
        parts = [expand(self._opening(rng, plot), bindings, rng)]
        for index, beat in enumerate(plot["beat"]):
            template = rng.choice(beat["variants"])
            joins = beat.get("joins_day", False) or template.startswith("{hero} ")
            if index == 0 and (beat.get("joins_day", False) or (joins and rng.random() < 0.7)):
                template = rng.choice(shared["days"]) + template
            parts.append(expand(template, bindings, rng))
        if rng.random() < 0.7:
            parts.append(expand(rng.choice(shared["endings"]), bindings, rng))
        if rng.random() < 0.3:
            parts.append(plot["moral"])
        cased = (parts[0], *map(sentence_case, parts[1:]))
        breaks = ("", *("\n" if rng.random() < _PARAGRAPH_BREAK else " " for _ in parts[1:]))
        return Story(cased, breaks, hero, None if plot.get("stranger", False) else friend)

    def short_story(self, rng: random.Random, hero: Character) -> str:
        """Three or four sentences about a given hero: what a chat answers with."""
        plot = rng.choice([plot for plot in self.plots if not plot.get("stranger", False)])
        bindings = self._bindings(rng, plot, hero, self.character(rng, other_than=hero.name))
        opening = "Once upon a time, there was {a:trait} {kind} named {hero}, and {his} best friend was {friend}."
        day = rng.choice(("One day, ", "One {weather} {time}, "))
        summary = plot["summary"]
        lead = day + summary if summary.startswith("{hero}") else summary
        return " ".join((expand(opening, bindings, rng), expand(lead, bindings, rng), plot["moral"]))

    def _opening(self, rng: random.Random, plot: dict[str, Any]) -> str:
        """An opening; where the friend is still a stranger, one that does not name the friend."""
        openings: list[str] = self._words["shared"]["openings"]
        if plot.get("stranger", False):
            openings = [
                "Once upon a time, there was {a:trait} {kind} named {hero}. {He} lived in {home}.",
                "Once upon a time, in {home}, there lived {a:size} {kind} named {hero}.",
                "Long ago, {a:trait} {kind} named {hero} lived in {home}.",
            ]
        return rng.choice(openings)

    def _bindings(self, rng: random.Random, plot: dict[str, Any], hero: Character, friend: Character) -> Bindings:
        pronoun = rng.choice(("she", "he"))
        elder = Character(rng.choice(self._words["elders"][pronoun]), "elder", pronoun)
        fixed = {"hero": hero.name, "kind": hero.kind, "friend": friend.name, "friendkind": friend.kind}
        fixed |= {"elder": elder.name} | hero.slots("") | friend.slots("f") | elder.slots("e")
        return Bindings(rng, fixed, {**self._words["slots"], **plot.get("slots", {})})
