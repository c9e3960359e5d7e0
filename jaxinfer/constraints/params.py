"""What a client may ask of an answer's form. Names are vLLM's (`StructuredOutputsParams`)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxinfer.errors import InvalidRequest

FIELD = "structured_outputs"
KINDS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
MAX_TEXT_BYTES = 1 << 17  # of a schema, a grammar, a structural tag or all choices together, in UTF-8
MAX_REGEX = 8192  # characters
MAX_WHITESPACE_PATTERN = 256  # characters
MAX_CHOICES = 1024


@dataclass(frozen=True, slots=True)
class StructuredOutputsParams:
    """The form of an answer: exactly one of the first six. Raises `InvalidRequest`, which names the field.

    What they mean is in docs/structured_output.md. Only sizes and types are judged here; `constraint_of` says whether
    schema, expression or grammar can be used.

    Args:
        json: A JSON schema: an object, true, or either as a string.
        regex: A regular expression in the syntax of Rust's crate regex, for the whole answer.
        choice: Texts of which the answer is one.
        grammar: Lark as llguidance has it, or GBNF.
        json_object: Any JSON object.
        structural_tag: {"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}, or that as a string.
        disable_any_whitespace: JSON without white space.
        disable_additional_properties: Objects that list properties have no others, unless they say so.
        whitespace_pattern: A regular expression for JSON's white space, instead of the default.
    """

    json: str | bool | Mapping[str, Any] | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: str | Mapping[str, Any] | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def __post_init__(self) -> None:
        if self.json_object is False:
            object.__setattr__(self, "json_object", None)
        given = [name for name in KINDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(FIELD, given, f"exactly one of {', '.join(KINDS)} must be given")
        self._check_types()
        if self.choice is not None:
            object.__setattr__(self, "choice", _choices(self.choice))
        if self.regex is not None:
            _check_length("regex", self.regex, MAX_REGEX)
        if self.whitespace_pattern is not None:
            _check_length("whitespace_pattern", self.whitespace_pattern, MAX_WHITESPACE_PATTERN)
        if self.grammar is not None:
            check_bytes(f"{FIELD}.grammar", self.grammar)
        for name in ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern"):
            if getattr(self, name) and self.kind in ("regex", "choice", "grammar"):
                raise InvalidRequest(f"{FIELD}.{name}", getattr(self, name), f"it has no meaning beside {self.kind}")
        if self.disable_any_whitespace and self.whitespace_pattern is not None:
            allowed = "it must be left out where disable_any_whitespace is set"
            raise InvalidRequest(f"{FIELD}.whitespace_pattern", self.whitespace_pattern, allowed)

    @property
    def kind(self) -> str:
        """The one of `KINDS` that is given."""
        return next(name for name in KINDS if getattr(self, name) is not None)

    def _check_types(self) -> None:
        wanted: Mapping[str, tuple[tuple[type, ...], str]] = {
            "json": ((str, bool, Mapping), "a JSON schema: an object, or one as a string"),
            "regex": ((str,), "a string"),
            "choice": ((list, tuple), "a list of strings"),
            "grammar": ((str,), "a string"),
            "json_object": ((bool,), "true"),
            "structural_tag": ((str, Mapping), "an object, or one as a string"),
            "disable_any_whitespace": ((bool,), "true or false"),
            "disable_additional_properties": ((bool,), "true or false"),
            "whitespace_pattern": ((str,), "a string"),
        }
        for name, (types, words) in wanted.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, types):
                raise InvalidRequest(f"{FIELD}.{name}", value, f"it must be {words}")

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any]) -> StructuredOutputsParams:
        """Of an object with these fields; null is "not given". Raises InvalidRequest for fields that there are not."""
        names = [field.name for field in dataclasses.fields(cls)]
        for name, value in given.items():
            if name not in names:
                raise InvalidRequest(f"{FIELD}.{name}", value, f"it may have {', '.join(names)}")
        return cls(**{name: value for name, value in given.items() if value is not None})

    def to_mapping(self) -> dict[str, Any]:
        """The fields that are set, as JSON has them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value is not None and value is not False}


def _choices(values: Sequence[Any]) -> tuple[str, ...]:
    name = f"{FIELD}.choice"
    if not 0 < len(values) <= MAX_CHOICES:
        raise InvalidRequest(name, f"{len(values)} choices", f"1 to {MAX_CHOICES} are allowed")
    for i, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise InvalidRequest(f"{name}[{i}]", value, "it must be a string of at least one character")
    check_bytes(name, "".join(values))
    return tuple(dict.fromkeys(values))


def _check_length(name: str, text: str, limit: int) -> None:
    if not 0 < len(text) <= limit:
        raise InvalidRequest(f"{FIELD}.{name}", f"{len(text)} characters", f"1 to {limit} are allowed")


def check_bytes(name: str, text: str) -> None:
    """Raises InvalidRequest for a text that is too long, or that is none for UTF-8."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        allowed = "it holds half of a surrogate pair; text must be valid Unicode"
        raise InvalidRequest(name, f"U+{ord(text[error.start]):04X}", allowed) from error
    if not 0 < size <= MAX_TEXT_BYTES:
        raise InvalidRequest(name, f"{size} bytes", f"1 to {MAX_TEXT_BYTES} are allowed")


def parsed(name: str, value: Any) -> Any:
    """What JSON in a string says; other values as they are. Raises InvalidRequest."""
    if not isinstance(value, str):
        return value
    check_bytes(name, value)
    try:
        return json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(name, value, f"it must be JSON: {error}") from error


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
