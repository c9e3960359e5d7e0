"""What an HTTP request says of its answers' form: `response_format`, `text.format`, and the calls of tools."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jaxinfer.constraints.calls import Tool, ToolRules
from jaxinfer.constraints.params import FIELD
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import OutputParserNames
from serving.http import ignored
from serving.http.models import ChatRequest, Sampling, TextSampling
from serving.http.responses_models import ResponsesRequest, ResponseTokensRequest
from serving.http.responses_tools import FunctionName

_FORMATS = ("text", "json_object", "json_schema", "structural_tag")
_SCHEMA_KEYS = ("name", "schema", "strict", "description")
_FORCED = "hermes"
_NAMED = 'it must be "auto", "none", "required", a function by its name, or allowed_tools'


class ToolChoice(NamedTuple):
    """What `tool_choice` says. names: the functions that may be called; None for all. single: exactly one call."""

    mode: str
    names: tuple[str, ...] | None = None
    single: bool = False

    @property
    def forces(self) -> bool:
        return self.mode == "required"


# -- the form of the text ---------------------------------------------------------------------------------------------


def form_of(request: Sampling) -> dict[str, Any]:
    """`structured_outputs` as the request's other fields ask for it; {} where they ask for nothing. Raises
    InvalidRequest."""
    if isinstance(request, TextSampling):
        name, wanted = "response_format", request.response_format
        asked = None if wanted is None else _response_format(name, wanted)
    elif isinstance(request, ResponsesRequest):
        name, wanted = "text.format", None if request.text is None else request.text.format
        asked = None if wanted is None else _response_format(name, wanted, flat=True)
    else:
        return {}
    if asked is None:
        return {}
    if getattr(request, FIELD) is not None:
        raise InvalidRequest(name, wanted, f"{FIELD} says what the answer must be, too; give one of them")
    return {FIELD: asked}


def names_of_parts(request: Sampling) -> dict[str, str]:
    """The servers' names of what is asked for -> this request's, for errors."""
    if getattr(request, FIELD) is not None:
        return {}
    if isinstance(request, ResponsesRequest):
        return {f"{FIELD}.json": "text.format.schema"}
    return {
        f"{FIELD}.json": "response_format.json_schema.schema",
        f"{FIELD}.structural_tag": "response_format",
    }


def _response_format(name: str, wanted: Any, *, flat: bool = False) -> dict[str, Any] | None:
    """flat: the schema stands in the format itself, as the Responses API has it."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if not isinstance(wanted, Mapping) or kind not in _FORMATS:
        raise InvalidRequest(name, wanted, f"it must be an object of type {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}")
    if kind == "structural_tag":
        return {"structural_tag": dict(wanted)}
    at = name
    if kind == "json_schema" and not flat:
        at = f"{name}.json_schema"
        _check_keys(name, wanted, ("type", "json_schema"))
        wanted = wanted.get("json_schema")
        if not isinstance(wanted, Mapping):
            raise InvalidRequest(at, wanted, 'it must be {"name": ..., "schema": {...}}')
    elif kind != "json_schema":
        _check_keys(name, wanted, ("type",))
        return {"json_object": True} if kind == "json_object" else None
    _check_keys(at, wanted, (*_SCHEMA_KEYS, "type") if flat else _SCHEMA_KEYS)
    for key, types in (("name", str), ("description", str), ("strict", bool)):
        if not isinstance(wanted.get(key), types | None):
            raise InvalidRequest(f"{at}.{key}", wanted[key], f"it must be of type {types.__name__}")
    schema = wanted.get("schema")
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{at}.schema", schema, "it must be a JSON schema, an object")
    return {"json": schema}


def _check_keys(name: str, value: Mapping[str, Any], known: Sequence[str]) -> None:
    for key, each in value.items():
        if key not in known and each is not None:
            ignored.unknown(f"{name}.{key}", each, known, f"it may have {', '.join(known)}")


# -- calls of tools ---------------------------------------------------------------------------------------------------


def tool_choice(request: ChatRequest | ResponsesRequest | ResponseTokensRequest) -> ToolChoice:
    """Raises InvalidRequest."""
    wanted = request.tool_choice
    if wanted is None or wanted in ("auto", "none", "required"):
        return ToolChoice(wanted or "auto")
    if wanted == "any":  # Mistral's and Anthropic's word
        return ToolChoice("required")
    if not isinstance(wanted, Mapping):
        raise InvalidRequest("tool_choice", wanted, _NAMED)
    if wanted.get("type") == "function":
        return ToolChoice("required", (_function_name("tool_choice", wanted),), single=True)
    if wanted.get("type") == "allowed_tools":
        inner = wanted.get("allowed_tools", wanted)
        mode, tools = (inner.get("mode"), inner.get("tools")) if isinstance(inner, Mapping) else (None, None)
        if mode not in ("auto", "required") or not isinstance(tools, list) or not tools:
            allowed = "allowed_tools has a mode, auto or required, and tools, a list of functions by their names"
            raise InvalidRequest("tool_choice", wanted, allowed)
        return ToolChoice(mode, tuple(_function_name(f"tool_choice.tools[{i}]", each) for i, each in enumerate(tools)))
    raise InvalidRequest("tool_choice", wanted, _NAMED)


def _function_name(name: str, wanted: Any) -> str:
    """As the model sees it. Of {"type": "function", "function": {"name": ...}}, or with the name beside the type, and
    perhaps its namespace."""
    function = wanted.get("function", wanted) if isinstance(wanted, Mapping) else None
    found, namespace = (
        (function.get("name"), function.get("namespace")) if isinstance(function, Mapping) else (None, "")
    )
    if not isinstance(found, str) or not isinstance(namespace, str | None):
        raise InvalidRequest(name, wanted, 'it must be like {"type": "function", "function": {"name": "..."}}')
    return FunctionName(namespace or "", found).shown


def with_forced_calls(form: OutputParserNames) -> OutputParserNames:
    """The same with a format for calls that must come, where the model's template shows none."""
    return form._replace(forced=_FORCED) if form.tool_calls == "none" and not form.is_harmony else form


def writing_calls(form: OutputParserNames, choice: ToolChoice) -> OutputParserNames:
    """The format of the answers to a request: a call that must come is written even where the model has no format."""
    return form._replace(tool_calls=form.forced) if choice.forces and form.forced else form


def tool_rules(
    request: ChatRequest | ResponsesRequest, choice: ToolChoice, offered: Sequence[Mapping[str, Any]] | None
) -> ToolRules | None:
    """What must hold for the calls of an answer. offered: the tools that the model gets to see, in chat completions'
    shape. Raises InvalidRequest for a choice that is not among them."""
    if offered is None:
        if choice.forces:
            raise InvalidRequest("tool_choice", request.tool_choice, "it needs tools")
        return None
    sent = dict(_functions(request.tools or (), "tools"))
    known = {tool["function"]["name"]: tool["function"] for tool in offered}
    for name in choice.names or ():
        if name not in known:
            raise InvalidRequest("tool_choice", name, f"the tools are {', '.join(known)}")
    names = tuple(known) if choice.names is None else choice.names
    tools = []
    for name in dict.fromkeys(names):
        field, strict = sent.get(name, ("tools", False))
        tools.append(Tool(name, known[name].get("parameters") or {}, field, strict))
    single = choice.single or request.parallel_tool_calls is False
    return ToolRules(tuple(tools), choice.forces, single, limited=len(tools) < len(known))


def _functions(tools: Sequence[Any], at: str, namespace: str = "") -> Iterator[tuple[str, tuple[str, bool]]]:
    """(name as the model sees it, (where its parameters stand in the request, whether it is strict)) of each function,
    those in namespaces too."""
    for i, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            continue
        if isinstance(tool.get("tools"), list):
            yield from _functions(tool["tools"], f"{at}[{i}].tools", str(tool.get("name")))
        inner = tool.get("function")
        function, place = (inner, f"{at}[{i}].function") if isinstance(inner, Mapping) else (tool, f"{at}[{i}]")
        if isinstance(function.get("name"), str):
            shown = FunctionName(namespace, function["name"]).shown
            yield shown, (f"{place}.parameters", function.get("strict") is True)
