"""How each format spells a call: the one place from which text is made that its parser reads.

A call is `before_name`, its name, `before_arguments`, its arguments, `after_arguments`; the calls of an answer stand
between `opening` and `closing`, with `between` between two. What an answer's grammar needs is here too: arguments are a
JSON object as it is (JsonArguments), or parameters of which texts stand as they are and everything else is JSON
(ParameterArguments), or Gemma's own notation (GemmaArguments).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


class ArgumentsSpelling(Protocol):
    def spell(self, arguments: str) -> str:
        """arguments: a JSON object. Returns how it is written in the format."""


@dataclass(frozen=True)
class JsonArguments:
    """The JSON object as it is."""

    def spell(self, arguments: str) -> str:
        return arguments


@dataclass(frozen=True)
class ParameterArguments:
    """Every parameter between tags.

    before_key, after: around a parameter. before_text: between its name and a text, which stands as it is.
    before_json: between its name and any other value, which is JSON. ends: strings that no text may hold, since they
    end it.
    """

    before_key: str
    before_text: str
    before_json: str
    after: str
    ends: tuple[str, ...]

    def spell(self, arguments: str) -> str:
        return "".join(self._spell(key, value) for key, value in json.loads(arguments).items())

    def _spell(self, key: str, value: Any) -> str:
        if isinstance(value, str):
            return self.before_key + key + self.before_text + value + self.after
        return self.before_key + key + self.before_json + json.dumps(value, ensure_ascii=False) + self.after


@dataclass(frozen=True)
class GemmaArguments:
    """Gemma 4's notation, `key:value` with commas between them. quote: around a text, which stands as it is and cannot
    hold it; numbers, true, false and null are JSON's, objects have braces and lists brackets."""

    quote: str

    def spell(self, arguments: str) -> str:
        return self._members(json.loads(arguments))

    def _members(self, members: dict[str, Any]) -> str:
        return ",".join(f"{key}:{self._value(value)}" for key, value in members.items())

    def _value(self, value: Any) -> str:
        if isinstance(value, str):
            return self.quote + value + self.quote
        if isinstance(value, dict):
            return "{" + self._members(value) + "}"
        if isinstance(value, list):
            return "[" + ",".join(map(self._value, value)) + "]"
        return json.dumps(value)


@dataclass(frozen=True)
class CallSpelling:
    """See the module's docstring."""

    before_name: str
    before_arguments: str
    after_arguments: str
    opening: str = ""
    between: str = ""
    closing: str = ""
    arguments: ArgumentsSpelling = field(default_factory=JsonArguments)

    def spell(self, name: str, arguments: str) -> str:
        """One call, without what stands around all of them. arguments: a JSON object."""
        return self.before_name + name + self.before_arguments + self.arguments.spell(arguments) + self.after_arguments

    def spell_all(self, calls: Sequence[tuple[str, str]]) -> str:
        """The calls of an answer, as (name, arguments as a JSON object); at least one."""
        return self.opening + self.between.join(self.spell(*call) for call in calls) + self.closing


def listed(opening: str, closing: str) -> CallSpelling:
    """A JSON list of objects with name and arguments."""
    return CallSpelling('{"name": "', '", "arguments": ', "}", opening, ", ", closing)
