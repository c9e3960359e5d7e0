"""The arguments of a call as each notation of jaxinfer/text/answers/spelling.py writes them.

A new notation adds its function to `_WRITERS`. What that lets through, the parser of the format must find:
tests/jaxinfer/constraints/test_calls_are_found.py draws calls of every format and reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxinfer.constraints.function import Function
from jaxinfer.constraints.gemma_arguments import as_members
from jaxinfer.constraints.grammar import Grammar, json_options
from jaxinfer.constraints.parameters import as_parameters
from jaxinfer.text.answers import CallSpelling, GemmaArguments, JsonArguments, ParameterArguments


def json_arguments(function: Function, grammar: Grammar) -> str:
    """The object as JSON."""
    return grammar.schema(function.parameters, json_options())


def _as_json(function: Function, _: JsonArguments, grammar: Grammar) -> str:
    return json_arguments(function, grammar)


_WRITERS: Mapping[type, Callable[[Function, Any, Grammar], str]] = {
    JsonArguments: _as_json,
    ParameterArguments: as_parameters,
    GemmaArguments: as_members,
}


def can_be_written(spelling: CallSpelling) -> bool:
    """Whether a grammar can be made of calls that are spelled so."""
    return type(spelling.arguments) in _WRITERS


def arguments(function: Function, spelling: CallSpelling, grammar: Grammar) -> str:
    """An expression for a call's arguments. Raises InvalidRequest for a schema that the notation cannot keep to."""
    return _WRITERS[type(spelling.arguments)](function, spelling.arguments, grammar)
