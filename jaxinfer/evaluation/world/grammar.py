"""Templates: `{slot}` takes a value that stays the same for one text, `[a|b]` picks one at each use."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([aA]:)?(\w+)\}")
_MAX_DEPTH = 8


class Bindings:
    """The slot values of one text: given ones, and others drawn from lists at first use and then kept.

    Args:
        rng: draws the values.
        fixed: slot name -> value.
        pools: slot name -> values to draw from.
    """

    def __init__(self, rng: random.Random, fixed: Mapping[str, str], pools: Mapping[str, list[str]]) -> None:
        self._rng = rng
        self._values = dict(fixed)
        self._pools = pools

    def value(self, slot: str) -> str:
        """The slot's value. A capital first letter asks for the value of the lower-case slot, capitalised.

        Raises:
            KeyError: no such slot.
        """
        if slot in self._values:
            return self._values[slot]
        if slot in self._pools:
            self._values[slot] = self._rng.choice(self._pools[slot])
            return self._values[slot]
        if slot[0].isupper():
            return capitalized(self.value(slot[0].lower() + slot[1:]))
        raise KeyError(f"template slot {{{slot}}} is unknown; known: {sorted({*self._values, *self._pools})}")


def capitalized(text: str) -> str:
    """The text with its first letter in upper case (unlike str.capitalize, the rest is left alone)."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def expand(template: str, bindings: Bindings, rng: random.Random) -> str:
    """Fills a template until no choice and no slot is left.

    `[a|b]` picks one alternative, `{slot}` its value, `{a:slot}` the value with its article, `{A:slot}` the same
    at the start of a sentence. Values may hold slots again.

    Raises:
        KeyError: an unknown slot.
        ValueError: slots that refer to each other without end.
    """

    def fill(match: re.Match[str]) -> str:
        article, slot = match.groups()
        value = bindings.value(slot)
        if article is None:
            return value
        return with_article(value) if article == "a:" else capitalized(with_article(value))

    text = template
    for _ in range(_MAX_DEPTH):
        text = _CHOICE.sub(lambda match: rng.choice(match.group(1).split("|")), text)
        text, count = _SLOT.subn(fill, text)
        if count == 0 and _CHOICE.search(text) is None:
            return text
    raise ValueError(f"template does not come to an end after {_MAX_DEPTH} rounds: {template!r}")
