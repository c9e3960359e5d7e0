"""Builds a constraint: Lark rules that refer to schemas and grammars beside them (llguidance documents its syntax)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from jaxinfer.constraints.checking import with_options

SPACE = r"/[\x20\x09\x0A\x0D]{1,8}/"
# JSON's white space where the client says nothing: enough for every way of indenting, and an end to it.
JSON_SPACE = r"[\x20\x09]{1,4}|\x0D?\x0A[\x20\x09]{0,80}"
_MARK = re.compile(r"<[^<>\s]{1,64}>|\[[^\[\]\s]{1,64}\]")  # how tokens are spelled that are a format's tags
_SPECIAL = frozenset("\\.+*?()|[]{}^$/#&-~")

TokenOf = Callable[[str], int | None]


def no_tokens(_: str) -> None:
    """For text that is not tokenized: no tag is a token."""
    return


class Grammar:
    """A constraint in the making. Expressions are Lark's, as strings; they may stand in any rule.

    token_of: the token that is spelled exactly so, such as a tag of the model's format; None where it is plain text.
    """

    def __init__(self, token_of: TokenOf = no_tokens) -> None:
        self._token_of = token_of
        self._rules: dict[tuple[str, str, str], str] = {}  # (kind, body, options) -> name
        self._parts: dict[str, dict[str, Any]] = {}
        self._numbers = 0

    def result(self, start: str) -> str:
        """llguidance's JSON form. start: the expression that the whole answer must match."""
        first = self._parts.get(start.removeprefix("@"))
        if first is not None:
            return json.dumps({"grammars": [first]}, ensure_ascii=False)
        rules = [f"{name}{options}: {body}" for (_, body, options), name in self._rules.items()]
        everything = [{"lark_grammar": "\n".join([f"start: {start}", *rules]) + "\n"}]
        everything += [{"name": name, **part} for name, part in self._parts.items()]
        return json.dumps({"grammars": everything}, ensure_ascii=False)

    def rule(self, body: str, options: str = "") -> str:
        """A rule with a name of its own. options: such as [lazy]."""
        return self._named("rule", body, options)

    def terminal(self, body: str) -> str:
        """A rule of capital letters, which is one lexeme."""
        return self._named("TERMINAL", body, "")

    def _named(self, kind: str, body: str, options: str) -> str:
        key = (kind, body, options)
        if key not in self._rules:
            self._rules[key] = self._new_name(kind)
        return self._rules[key]

    def schema(self, schema: Any, options: dict[str, Any]) -> str:
        """JSON that a usable schema allows (see schema.py). options: as `x-guidance` has them."""
        return self._part({"json_schema": with_options(schema, options)})

    def lark(self, text: str) -> str:
        """What a whole Lark grammar allows."""
        return self._part({"lark_grammar": text})

    def text(self, text: str) -> str:
        """A text that must stand there; in it, tags that are tokens must be these tokens."""
        found, end = [], 0
        for mark in _MARK.finditer(text):
            index = self._token_of(mark[0])
            if index is not None:
                found += [literal(text[end : mark.start()]), f"<[{index}]>"]
                end = mark.end()
        return " ".join(filter(None, [*found, literal(text[end:])]))

    def any_text(self) -> str:
        """Any text, none at all too. It has no special tokens."""
        return self.terminal(r"/(.|\n)*/")

    def until(self, tags: Sequence[str]) -> str:
        """Any text up to the first of the tags, which is its end: as its token, or spelled in other ones."""
        spelled = "|".join(map(pattern_of, tags))
        either = [self.rule(rf"/(.|\n)*({spelled})/", "[lazy]")]
        tokens = [index for tag in tags if (index := self._token_of(tag)) is not None]
        if tokens:
            either.append(f"{self.any_text()} <[{','.join(map(str, tokens))}]>")
        return self.rule(" | ".join(either))

    def ended(self, body: str, end: str) -> str:
        """A text that a terminal's expression allows, up to where `end` stands for the first time behind one."""
        lazy = self._named("rule", self.terminal(f"({body}) {literal(end)}"), "[lazy]")
        mark = next((mark for mark in _MARK.finditer(end) if self._token_of(mark[0]) is not None), None)
        if mark is None:
            return lazy
        head = f"({body}) {literal(end[: mark.start()])}".rstrip()
        return either(lazy, f"{self.terminal(head)} {self.text(end[mark.start() :])}")

    def _part(self, part: dict[str, Any]) -> str:
        known = next((name for name, other in self._parts.items() if other == part), None)
        if known is None:
            known = self._new_name("part")
            self._parts[known] = part
        return f"@{known}"

    def _new_name(self, kind: str) -> str:
        self._numbers += 1
        return f"{kind}_{self._numbers}"


def literal(text: str) -> str:
    """Lark's string; "" for no text."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def pattern_of(text: str) -> str:
    """A regular expression, between slashes, for just this text."""
    return "".join("\\n" if c == "\n" else "\\" + c if c in _SPECIAL else c for c in text)


def either(*expressions: str) -> str:
    """One of them; an empty one is nothing."""
    return "(" + " | ".join(e or '""' for e in expressions) + ")"


def json_options(*, compact: bool = False, whitespace: str | None = None) -> dict[str, Any]:
    """llguidance's options for JSON. compact: without white space. whitespace: the expression for it."""
    if compact:
        return {"whitespace_flexible": False}
    return {"whitespace_pattern": JSON_SPACE if whitespace is None else whitespace}
