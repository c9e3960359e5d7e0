"""The form of an answer that `StructuredOutputsParams` ask for, as an expression of a grammar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.constraints.checking import JUDGE, check_lark, check_schema
from jaxinfer.constraints.grammar import Grammar, json_options, literal
from jaxinfer.constraints.nesting import check_grammar_levels
from jaxinfer.constraints.params import FIELD, StructuredOutputsParams, check_bytes, parsed
from jaxinfer.constraints.schema import usable_schema
from jaxinfer.errors import InvalidRequest

MAX_STRUCTURES = 256  # of a structural tag
MAX_TAG = 1024  # characters of a structure's beginning or end, or of a trigger
_STRUCTURE = ("begin", "schema", "end")


def answer(params: StructuredOutputsParams, grammar: Grammar) -> str:
    """Raises InvalidRequest naming the field, with the part of a schema."""
    kind = params.kind
    if kind == "json":
        return json_value(f"{FIELD}.json", params.json, params, grammar)
    if kind == "json_object":
        return grammar.schema({"type": "object"}, _options(params))
    if kind == "structural_tag":
        return _structural_tag(params, grammar)
    name = f"{FIELD}.{kind}"
    value = getattr(params, kind)
    text = {"regex": _regex, "choice": _choice, "grammar": _grammar}[kind](value)
    check_lark(name, value, text)
    return grammar.lark(text)


def json_value(name: str, schema: Any, params: StructuredOutputsParams, grammar: Grammar) -> str:
    """JSON of a schema, which the field `name` has."""
    usable = usable_schema(name, parsed(name, schema), closed=params.disable_additional_properties)
    options = _options(params)
    check_schema(name, usable, options)
    return grammar.schema(usable, options)


def _options(params: StructuredOutputsParams) -> dict[str, Any]:
    options = json_options(compact=params.disable_any_whitespace, whitespace=params.whitespace_pattern)
    if params.whitespace_pattern is not None:
        check_schema(f"{FIELD}.whitespace_pattern", {"type": "object"}, options)
    return options


def _regex(text: str) -> str:
    from llguidance import regex_to_lark

    return f"start: REGEX\nREGEX: /{regex_to_lark(text, 'd')}/\n"


def _choice(texts: Sequence[str]) -> str:
    return "start: CHOICE\nCHOICE: " + " | ".join(map(literal, texts)) + "\n"


def _grammar(text: str) -> str:
    """Lark; GBNF is turned into it."""
    check_grammar_levels(f"{FIELD}.grammar", text)
    lark, fault = JUDGE.lark_of(text)  # not here: the converter is Python, and may take minutes for line breaks alone
    if lark is None:
        raise InvalidRequest(f"{FIELD}.grammar", text, fault)
    return lark


# -- structural tags --------------------------------------------------------------------------------------------------


def _structural_tag(params: StructuredOutputsParams, grammar: Grammar) -> str:
    """Text in which, behind each trigger, one of the structures that begin with it must go on."""
    name = f"{FIELD}.structural_tag"
    given = parsed(name, params.structural_tag)
    structures, triggers = _checked(name, given)
    starts: dict[str, list[str]] = {}
    for i, structure in enumerate(structures):
        at = f"{name}.structures[{i}]"
        begin = structure["begin"]
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise InvalidRequest(f"{at}.begin", begin, f"it must begin with one of the triggers {triggers}")
        body = json_value(f"{at}.schema", structure["schema"], params, grammar)
        rest = (grammar.text(begin[len(trigger) :]), body, grammar.text(structure["end"]))
        starts.setdefault(trigger, []).append(" ".join(filter(None, rest)))
    unused = next((trigger for trigger in triggers if trigger not in starts), None)
    if unused is not None:
        raise InvalidRequest(f"{name}.triggers", unused, "no structure begins with it")
    tags = [f"{grammar.until((trigger,))} ({' | '.join(bodies)})" for trigger, bodies in starts.items()]
    return f"({' | '.join(tags)})* {grammar.any_text()}"


def _checked(name: str, given: Any) -> tuple[list[Mapping[str, Any]], list[str]]:
    if not isinstance(given, Mapping):
        raise InvalidRequest(name, given, "it must be an object with structures and triggers")
    if "format" in given:
        allowed = "only structures and triggers are supported, not the form with format"
        raise InvalidRequest(f"{name}.format", given["format"], allowed)
    for key, value in given.items():
        if key not in ("type", "structures", "triggers"):
            raise InvalidRequest(f"{name}.{key}", value, "it may have type, structures and triggers")
    if given.get("type", "structural_tag") != "structural_tag":
        raise InvalidRequest(f"{name}.type", given["type"], 'it must be "structural_tag"')
    structures, triggers = given.get("structures"), given.get("triggers")
    for key, value in (("structures", structures), ("triggers", triggers)):
        if not isinstance(value, list) or not 0 < len(value) <= MAX_STRUCTURES:
            raise InvalidRequest(f"{name}.{key}", value, f"it must be a list of 1 to {MAX_STRUCTURES}")
    assert isinstance(structures, list)
    assert isinstance(triggers, list)
    for i, structure in enumerate(structures):
        if not isinstance(structure, Mapping) or set(structure) != set(_STRUCTURE):
            raise InvalidRequest(f"{name}.structures[{i}]", structure, f"it must have {', '.join(_STRUCTURE)}")
        _check_tag(f"{name}.structures[{i}].begin", structure["begin"], 1)
        _check_tag(f"{name}.structures[{i}].end", structure["end"], 0)
    for i, trigger in enumerate(triggers):
        _check_tag(f"{name}.triggers[{i}]", trigger, 1)
    return structures, triggers


def _check_tag(name: str, value: Any, least: int) -> None:
    if not isinstance(value, str) or not least <= len(value) <= MAX_TAG:
        raise InvalidRequest(name, value, f"it must be a string of {least} to {MAX_TAG} characters")
    if value:
        check_bytes(name, value)
