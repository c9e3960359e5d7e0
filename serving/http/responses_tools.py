"""Tools as the Responses API has them: flat functions, functions within a namespace, and tools of other kinds, which
this server has no use for and reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxinfer.errors import InvalidRequest
from serving.http import chat_input, ignored
from serving.request import MAX_TOOLS, check_count

_FUNCTION, _NAMESPACE = "function", "namespace"
_JOINT = "__"  # as tools of several servers are commonly told apart
_ONLY_FUNCTIONS = "only functions are supported, and namespaces of them"
_REPEATED: Mapping[str, Any] = {"strict": False, "parameters": {}}  # what an answer says of a function at least
_NAMESPACE_KEYS = ("type", "name", "description", "tools")


class FunctionName(NamedTuple):
    """A function as its client calls it. namespace: "" outside of one."""

    namespace: str
    name: str

    @property
    def shown(self) -> str:
        """What the model knows it by."""
        if not self.namespace:
            return self.name
        return self.namespace + ("" if self.namespace.endswith(_JOINT) else _JOINT) + self.name


def functions(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The functions that templates get to see, in chat completions' shape. Raises InvalidRequest."""
    check_count("tools", tools or (), MAX_TOOLS, "tools")
    result: list[dict[str, Any]] = []
    names: dict[str, FunctionName] = {}
    for at, name, function in _each(tools):
        if names.setdefault(name.shown, name) != name:
            other = names[name.shown]
            allowed = f"the model sees both it and {other.name!r} of the namespace {other.namespace!r} as {name.shown}"
            raise InvalidRequest(f"{at}.name", name.name, allowed)
        result.append({"type": "function", "function": {**function, "name": name.shown}})
    check_count("tools", result, MAX_TOOLS, "functions")
    return result


def called(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, FunctionName]:
    """The functions of tools that were checked, by the names that the model calls them by, where those differ."""
    found: dict[str, FunctionName] = {}
    for tool in tools or ():
        if tool.get("type") == _NAMESPACE:
            for inner in tool["tools"]:
                if inner.get("type") == _FUNCTION:
                    name = FunctionName(tool["name"], inner["name"])
                    found[name.shown] = name
    return found


def as_sent(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools as a response repeats them: those of other kinds too, which clients would miss."""
    return [
        {
            **(_REPEATED if tool.get("type", _FUNCTION) == _FUNCTION else {}),
            **{k: v for k, v in tool.items() if v is not None},
        }
        for tool in tools or ()
    ]


def _each(tools: Sequence[Mapping[str, Any]] | None) -> Iterator[tuple[str, FunctionName, dict[str, Any]]]:
    for i, tool in enumerate(tools or ()):
        at, kind = f"tools[{i}]", tool.get("type")
        if kind == _NAMESPACE:
            yield from _namespace(at, tool)
        elif _is_function(at, tool, _FUNCTION if chat_input.says_nothing(kind) else kind):
            function = chat_input.flat_function(at, tool)
            yield at, FunctionName("", function["name"]), function


def _namespace(at: str, tool: Mapping[str, Any]) -> Iterator[tuple[str, FunctionName, dict[str, Any]]]:
    """Templates have no place for a namespace's description: it begins that of its first function."""
    for key, value in tool.items():
        if key not in _NAMESPACE_KEYS and not chat_input.says_nothing(value):
            ignored.unknown(f"{at}.{key}", value, _NAMESPACE_KEYS, f"a namespace has {', '.join(_NAMESPACE_KEYS)}")
    namespace = chat_input.tool_name(f"{at}.name", tool.get("name"))
    about, inner = tool.get("description") or "", tool.get("tools")
    if not isinstance(about, str):
        raise InvalidRequest(f"{at}.description", about, "it must be a string")
    if not isinstance(inner, list) or not all(isinstance(each, dict) for each in inner):
        raise InvalidRequest(f"{at}.tools", inner, "it must be a list of functions")
    for i, each in enumerate(inner):
        within = f"{at}.tools[{i}]"
        if not _is_function(within, each, each.get("type")):
            continue
        function = chat_input.flat_function(within, each)
        if about:
            function["description"] = "\n".join(filter(None, (about, function.get("description", ""))))
            about = ""
        yield within, FunctionName(namespace, function["name"]), function


def _is_function(at: str, tool: Mapping[str, Any], kind: Any) -> bool:
    if kind == _FUNCTION:
        return True
    if not isinstance(kind, str):
        raise InvalidRequest(f"{at}.type", kind, _ONLY_FUNCTIONS)
    ignored.without_effect(f"{at}.type", kind, _ONLY_FUNCTIONS)
    return False
