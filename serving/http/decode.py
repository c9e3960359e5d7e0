"""From a request's bytes to its type, with errors that name field, value and what is allowed."""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any, TypeVar

import msgspec

from jaxinfer.errors import InvalidRequest
from serving.http import ignored
from serving.http.declaring import NoEffect
from serving.http.errors import ApiError, from_invalid, invalid
from serving.http.known_fields import known_fields_only
from serving.http.models import MAX_USER, RECORDED, REFUSED
from serving.http.struct_types import fields_of
from serving.http.whole_numbers import with_whole_numbers
from serving.json_weight import MAX_WEIGHT, is_too_heavy, up_to_long_name

Body = bytes | bytearray  # as it was read
T = TypeVar("T", bound=msgspec.Struct)

_PATH = re.compile(r"^(?P<what>.*?)(?: - at `(?:key` in `)?(?P<path>\$[^`]*)`)?$", re.DOTALL)
_STEP = re.compile(r"\.([^.\[]+)|\[(\d+)\]")
_NAMED = re.compile(r"^Object (contains unknown|missing required) field `(.*)`$", re.DOTALL)
_WORDS = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_MISSING = object()
_UNKNOWN_FIELD = "Object contains unknown field"

_LONGEST_NAME = 100  # characters of a field that nobody knows, in an error


def decode(body: Body, kind: type[T]) -> T:
    """Names that nobody knows are reported, or refused (see ignored.py). Raises ApiError, or InvalidRequest for a value
    that is not taken."""
    if is_too_heavy(body):
        message = f"the request's body has too many values; {MAX_WEIGHT} numbers are taken, or fewer lists and objects"
        raise ApiError(413, message, code="body_too_large")
    _refuse_long_name(body, kind)
    try:
        try:
            request = msgspec.json.decode(body, type=kind)
        except msgspec.ValidationError as error:
            request = _mended(error, body, kind)  # which reads what is behind the faulty value, too
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        said = "it is empty" if not body or body.isspace() else str(error)
        raise invalid(None, f"the body is not JSON: {said}", "invalid_json") from error
    except RecursionError as error:
        raise invalid(None, "the body is nested too deeply", "invalid_json") from error
    refuse(request)
    return request


def _refuse_long_name(body: Body, kind: type[msgspec.Struct]) -> None:
    """Raises the ApiError of an unknown field with a name of megabytes, of which only the beginning is told, without
    making it."""
    beginning = up_to_long_name(body)
    if beginning is None:
        return
    try:
        msgspec.json.decode(beginning, type=kind)
    except msgspec.ValidationError as error:
        if str(error).startswith(_UNKNOWN_FIELD):
            raise explain(error, beginning, kind) from error


def _mended(error: msgspec.ValidationError, body: Body, kind: type[T]) -> T:
    """The request where all that is wrong are integers written as 16.0, and names to be reported. Raises ApiError."""
    said = str(error)
    unknown = ignored.reporting() and said.startswith(_UNKNOWN_FIELD)
    if not unknown and "got `float`" not in said:
        raise explain(error, body, kind) from error
    value = as_taken(msgspec.json.decode(body), kind)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as other:
        raise explain(other, body, kind) from other


def as_taken(value: Any, kind: type[msgspec.Struct]) -> Any:
    """Decoded JSON, with whole numbers as integers and without the names that are reported."""
    value = known_fields_only(value, kind) if ignored.reporting() else value
    return with_whole_numbers(value, kind)


def refuse(request: msgspec.Struct, prefix: str = "") -> None:
    """Raises InvalidRequest for a field that is taken with its neutral values only and has another. What has no effect
    is reported."""
    no_effect = no_effects(type(request))
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if value is None or value is msgspec.UNSET:
            continue
        if isinstance(value, msgspec.Struct):
            refuse(value, f"{prefix}{name}.")
        elif name in RECORDED and len(value) > MAX_USER:
            raise InvalidRequest(name, value, f"at most {MAX_USER} characters are allowed")
        elif name in no_effect:
            if not any(_same(value, neutral) for neutral in no_effect[name].neutral):
                ignored.without_effect(prefix + name, value, no_effect[name].why)
        elif name in _untyped(type(request)):
            rule = REFUSED.get(prefix + name)
            if rule is not None and not any(_same(value, neutral) for neutral in rule.neutral):
                raise InvalidRequest(prefix + name, value, rule.why)


def _same(value: Any, neutral: Any) -> bool:
    return bool(value == neutral) and isinstance(value, bool) == isinstance(neutral, bool)


@cache
def no_effects(kind: type[msgspec.Struct]) -> dict[str, NoEffect]:
    """The fields of `kind` that are known to have none."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    marks = {field.name: getattr(field.type, "extra", None) or {} for field in info.fields}
    return {name: mark["no effect"] for name, mark in marks.items() if "no effect" in mark}


@cache
def _untyped(kind: type[msgspec.Struct]) -> frozenset[str]:
    """Fields of any type: what they may be is said by REFUSED. The same name can be a field with effect elsewhere."""
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    types = {f.name: f.type.type if isinstance(f.type, msgspec.inspect.Metadata) else f.type for f in info.fields}
    return frozenset(name for name, inner in types.items() if isinstance(inner, msgspec.inspect.AnyType))


def explain(error: msgspec.ValidationError, body: Body, kind: type[msgspec.Struct]) -> ApiError:
    """What is told of it. body: where the value is found."""
    said = str(error)
    if len(said) > 1000:  # it quotes the name of a field, however long; the path is at the end
        said = said[:500] + said[-500:]
    match = _PATH.match(said)
    assert match is not None
    what, path = match["what"], (match["path"] or "$")[1:].lstrip(".").replace("[...]", "")
    named = _NAMED.match(what)
    if named is not None:
        own = named[2] if len(named[2]) <= _LONGEST_NAME else named[2][:_LONGEST_NAME] + "..."
        name = f"{path}.{own}" if path else own
        if named[1].startswith("missing"):
            return invalid(name, f"{name} is missing; it is required", "missing_required_parameter", "it is required")
        close = difflib.get_close_matches(own, kind.__struct_fields__, n=1) if not path else []
        hint = f"; did you mean {close[0]}?" if close else ""
        message = f"{name} is not a field of this request{hint}"
        return invalid(name, message, "unknown_parameter", ignored.UNKNOWN)
    if not path:
        return invalid(None, "the body must be a JSON object")
    value = _value_at(body, path)
    allowed = _one_of(path, kind) if what.startswith("Invalid enum value") else _allowed(what)
    if value is _MISSING:
        return invalid(path, f"{path} cannot be read; {allowed}", reason=allowed)
    return from_invalid(InvalidRequest(path, value, allowed))


def _allowed(what: str) -> str:
    expected = re.match(r"Expected `([^`]*)`", what)
    if expected is None:
        return what[0].lower() + what[1:]
    kinds = [_WORDS.get(kind, kind) for kind in expected[1].split(" | ") if kind != "null"]
    return f"it must be {' or '.join(kinds)}"


def _one_of(path: str, kind: type[msgspec.Struct]) -> str:
    """The words that may stand where the path leads to."""
    types: tuple[msgspec.inspect.Type, ...] = (msgspec.inspect.type_info(kind),)
    for key, _ in _STEP.findall("." + path):
        structs = [each.cls for each in types if isinstance(each, msgspec.inspect.StructType)]
        types = next((fields_of(each)[key] for each in structs if key in fields_of(each)), ())
    words = [str(word) for each in types if isinstance(each, msgspec.inspect.LiteralType) for word in each.values]
    return "it must be " + " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _value_at(body: Body, path: str) -> Any:
    """The value that a path such as messages[0].role leads to. The request is decoded again: it is refused anyway."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):  # a number out of range
        return _MISSING
    for key, index in _STEP.findall("." + path):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError):
            return _MISSING
    return value
