"""How deeply what a grammar is made of lies within each other, counting references: the library that compiles it calls
itself for every level, and a thread's stack has an end that ends the process with it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from jaxinfer.errors import InvalidRequest

# Stacks of 8 MiB, which threads have, end between 800 and 1000 objects that refer to each other, and between 1000 and
# 4000 rules.
MAX_LEVELS = 800  # of a schema: an object whose property is a reference counts for four
MAX_RULE_LEVELS = 1000  # of a grammar: its rules times its deepest brackets
_MOST_REFERENCES = 100  # of schemas inside of a grammar
_RULE = re.compile(r"^[ \t]*[?!]?[A-Za-z_][\w.-]*+\s*+(?:\[[^\]\n]*\])?\s*+(?::|::=)", re.M)


def check_schema_levels(name: str, schema: Any) -> None:
    """Raises InvalidRequest for a usable schema (see schema.py) whose references lead too deep."""
    _Levels(name, schema).check()


class _Levels:
    def __init__(self, name: str, root: Any) -> None:
        self._name, self._root = name, root
        self._below: dict[str, int] = {}  # reference -> levels from there on
        self._open: set[str] = set()
        self._circle = False
        self._own: dict[str, list[tuple[str, int]]] = {}

    def check(self) -> None:
        try:
            levels = self._from("#", 0)
        except RecursionError:
            self._refuse()
        if self._circle:  # any order of what refers to itself may come
            levels = sum(1 + max((level for _, level in found), default=0) for found in self._own.values())
        if levels > MAX_LEVELS:
            self._refuse()

    def _refuse(self) -> NoReturn:
        allowed = f"its references may lead through at most {MAX_LEVELS} levels"
        raise InvalidRequest(self._name, f"a schema of {len(self._own)} parts that are referred to", allowed)

    def _from(self, reference: str, above: int) -> int:
        if above > MAX_LEVELS:
            self._refuse()
        if reference in self._open:
            self._circle = True
            return 0
        if reference not in self._below:
            self._open.add(reference)
            found = self._own[reference] = list(_references(self._at(reference), 0))
            levels = (level + self._from(other, above + level) for other, level in found)
            self._below[reference] = max(levels, default=0) + 1
            self._open.discard(reference)
        return self._below[reference]

    def _at(self, reference: str) -> Any:
        found = self._root
        for step in reference.removeprefix("#").split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = found[int(name)] if name.isdigit() and int(name) < len(found) else None
            else:
                found = found.get(name) if isinstance(found, Mapping) else None
        return found


def _references(schema: Any, level: int) -> Iterator[tuple[str, int]]:
    """(reference, levels down to it), but for those of definitions, which matter where they are referred to."""
    if isinstance(schema, list):
        for each in schema:
            yield from _references(each, level + 1)
    elif isinstance(schema, Mapping):
        for keyword, value in schema.items():
            if keyword == "$ref" and isinstance(value, str):
                yield value, level + 1
            elif keyword not in ("$defs", "definitions", "enum", "const"):
                yield from _references(value, level + 1)


def check_grammar_levels(name: str, text: str) -> None:
    """Raises InvalidRequest for a grammar in Lark or GBNF that may lead too deep."""
    rules = max(sum(1 for _ in _RULE.finditer(text)), text.count("::="))
    depth = deepest = 0
    for character in text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    if rules * (1 + deepest) > MAX_RULE_LEVELS:
        allowed = f"rules times levels of brackets may be {MAX_RULE_LEVELS} at most"
        raise InvalidRequest(name, f"a grammar of {rules} rules and {deepest} levels", allowed)
    if text.count("$ref") > _MOST_REFERENCES:
        raise InvalidRequest(name, f"{text.count('$ref')} references", f"at most {_MOST_REFERENCES} are allowed")
