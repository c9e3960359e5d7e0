"""What else is wrong with a body that is refused: the faulty field is replaced by one that is not, and the rest is
checked again. Only small bodies are, so that a refusal costs little."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec

from jaxinfer.errors import MAX_FAULTS, InvalidRequest, faults_of
from serving.http.decode import Body, as_taken, explain, refuse
from serving.http.errors import ApiError, all_of, from_invalid

T = TypeVar("T", bound=msgspec.Struct)

MAX_BYTES = 64 << 10  # of a body whose other faults are looked for
_MESSAGE: Mapping[str, Any] = {"role": "user", "content": "x"}
# Values that are never wrong, for fields that must be there.
_REQUIRED: Mapping[str, Any] = {"prompt": "x", "messages": [_MESSAGE], "input": "x", "tokens": []}
_STEP = re.compile(r"\[(\d+)\]")


def every_fault(body: Body, kind: type[T], first: ApiError, check: Callable[[T], None]) -> ApiError:
    """`first`, the error that a body of `kind` met, together with all others that are found. check: raises
    InvalidRequest for what only the whole request shows; anything else that it raises ends the search."""
    value = _object(body) if len(body) <= MAX_BYTES else None
    if value is None:
        return first
    value = as_taken(value, kind)
    found: list[ApiError] = []
    mended: set[str] = set()
    while len(found) < MAX_FAULTS:
        errors = _errors(value, kind, check)
        news = [error for error in errors if error.param not in {known.param for known in found}]
        # Without the field that was mended another one may lack what it needs: that is no fault of the client's.
        found += [error for error in news if not any(_names(error.reason, name) for name in mended)]
        paths = [error.param for error in errors if error.param is not None]
        changed = [_mend(value, path, kind) for path in paths]
        if not news or not all(changed):
            break
        # A name that nobody knows is nothing that others need, and may be a word of their sentences ("a", "list").
        mended |= {_top(path) for path in paths} & set(kind.__struct_fields__)
    return all_of(found) if len(found) > 1 else first


def _object(body: Body) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _errors(value: dict[str, Any], kind: type[T], check: Callable[[T], None]) -> list[ApiError]:
    """Those that are met at once."""
    try:
        request = msgspec.convert(value, kind)
        refuse(request)
        check(request)
    except msgspec.ValidationError as error:
        return [explain(error, msgspec.json.encode(value), kind)]
    except InvalidRequest as error:
        return [from_invalid(fault) for fault in faults_of(error)]
    except Exception:  # of a kind that is told alone, if it is what the request ends with
        return []
    return []


def _top(path: str) -> str:
    return re.split(r"[.\[]", path, maxsplit=1)[0]


def _names(text: str, field: str) -> bool:
    return re.search(rf"\b{re.escape(field)}\b", text) is not None


def _mend(value: dict[str, Any], path: str, kind: type[msgspec.Struct]) -> bool:
    """Puts something in the place of what `path` leads to, or takes it away; False where nothing is there to mend."""
    top = next((name for name in value if path == name), _top(path))
    step = _STEP.match(path[len(top) :])
    entries = value.get(top)
    if step is not None and isinstance(entries, list) and int(step[1]) < len(entries) and top in ("messages", "input"):
        fresh = entries[int(step[1])] is not _MESSAGE
        entries[int(step[1])] = _MESSAGE
        return fresh
    if step is not None and isinstance(entries, list) and int(step[1]) < len(entries) and top == "tools":
        tool = _tool(flat="input" in kind.__struct_fields__)
        fresh = bool(entries[int(step[1])] != tool)
        entries[int(step[1])] = tool
        return fresh
    if top in _REQUIRED and top in kind.__struct_fields__:
        fresh = value.get(top) != _REQUIRED[top]
        value[top] = list(_REQUIRED[top]) if isinstance(_REQUIRED[top], list) else _REQUIRED[top]
        return fresh
    return value.pop(top, msgspec.UNSET) is not msgspec.UNSET


def _tool(*, flat: bool) -> dict[str, Any]:
    function = {"name": "x"}
    return {"type": "function", **function} if flat else {"type": "function", "function": function}
