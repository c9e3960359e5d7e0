"""Tools of the Messages API and the choice among them, made into what the other endpoints take."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.constraints.calls import Tool, ToolRules
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import OutputParserNames
from serving.cache_marks import MARK
from serving.http import ignored, structured
from serving.http.cache_control import CacheControl
from serving.http.chat import NO_TOOL_FORMAT
from serving.http.chat_input import says_nothing
from serving.http.messages_models import MessagesRequest, MessageTokensRequest
from serving.http.structured import ToolChoice
from serving.request import MAX_TOOLS, check_count

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_CUSTOM = ("custom", "function")  # types of tools that the client describes
_KEYS = ("type", "name", "description", "input_schema", "strict")
_MARKS = ("defer_loading", "eager_input_streaming", "input_examples", "allowed_callers")
_NOT_OURS = "only tools that the client describes are offered: this server runs none"


def offered_tools(
    request: MessagesRequest | MessageTokensRequest, form: OutputParserNames, marks: CacheControl
) -> list[dict[str, Any]] | None:
    """The tools that the model gets to see, in chat completions' shape with their marks: none where it must not call
    any. Raises InvalidRequest."""
    check_count("tools", request.tools or (), MAX_TOOLS, "tools")
    form = structured.writing_calls(form, tool_choice(request))
    found = [_tool(f"tools[{i}]", tool, marks) for i, tool in enumerate(request.tools or ())]
    tools = [tool for tool in found if tool is not None]
    _check_choice(request, [tool["function"]["name"] for tool in tools])
    if not tools or (request.tool_choice is not None and request.tool_choice.type == "none"):
        return None
    if form.tool_calls == "none":
        raise InvalidRequest("tools", [tool["function"]["name"] for tool in tools], NO_TOOL_FORMAT)
    return tools


def tool_choice(request: MessagesRequest | MessageTokensRequest) -> ToolChoice:
    """The same as chat completions say it."""
    choice = request.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return ToolChoice("auto" if choice is None else choice.type)
    if choice.type == "tool":
        return ToolChoice("required", (str(choice.name),), single=True)
    return ToolChoice("required")


def tool_rules(request: MessagesRequest, offered: Sequence[Mapping[str, Any]] | None) -> ToolRules | None:
    """What must hold for the calls of an answer. offered: see `offered_tools`."""
    if offered is None:
        return None
    choice = tool_choice(request)
    sent = {tool.get("name"): (i, tool) for i, tool in enumerate(request.tools or ())}
    tools = []
    for function in (tool["function"] for tool in offered):
        if choice.names is None or function["name"] in choice.names:
            i, tool = sent[function["name"]]
            strict = tool.get("strict") is True
            tools.append(Tool(function["name"], function["parameters"], f"tools[{i}].input_schema", strict))
    return ToolRules(tuple(tools), choice.forces, choice.single or single_call(request))


def single_call(request: MessagesRequest) -> bool:
    """Whether only the first call of an answer counts."""
    return request.tool_choice is not None and bool(request.tool_choice.disable_parallel_tool_use)


def _check_choice(request: MessagesRequest | MessageTokensRequest, offered: Sequence[str]) -> None:
    """Raises InvalidRequest for a choice that cannot be kept."""
    choice = request.tool_choice
    if choice is None or choice.type in ("auto", "none"):
        return
    if choice.type == "tool" and choice.name not in offered:
        shown = ", ".join(offered[:8]) or "none"
        raise InvalidRequest("tool_choice.name", choice.name, f"it must be one of the offered tools, which are {shown}")
    if not offered:
        raise InvalidRequest("tool_choice.type", choice.type, "it needs tools")


def _tool(at: str, tool: Mapping[str, Any], marks: CacheControl) -> dict[str, Any] | None:
    """None for a tool that the model's provider would run, or that only Anthropic's models know: those have a type and
    no schema."""
    kind = tool.get("type")
    if not (says_nothing(kind) or isinstance(kind, str)):
        raise InvalidRequest(f"{at}.type", kind, "it must be a string, or null")
    if kind and kind not in _CUSTOM:
        ignored.without_effect(f"{at}.{kind}", tool, _NOT_OURS)
        return None
    name, description, schema = tool.get("name"), tool.get("description"), tool.get("input_schema")
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise InvalidRequest(f"{at}.name", name, "it must be 1 to 128 letters, digits, dots, underscores or dashes")
    if not (says_nothing(description) or isinstance(description, str)):
        raise InvalidRequest(f"{at}.description", description, "it must be a string")
    if not (says_nothing(schema) or isinstance(schema, dict)):
        raise InvalidRequest(f"{at}.input_schema", schema, "it must be an object, a JSON schema")
    if not isinstance(tool.get("strict"), bool | None):
        raise InvalidRequest(f"{at}.strict", tool["strict"], "it must be true, false or null")
    for key, value in tool.items():
        if key in _MARKS and not says_nothing(value) and value is not False:
            ignored.passed_over(f"{at}.{key}")
        elif key not in (*_KEYS, *_MARKS, MARK) and not says_nothing(value):
            ignored.unknown(f"{at}.{key}", value, _KEYS, f"a tool may have {', '.join(_KEYS)}")
    function = {"name": name, **({"description": description} if isinstance(description, str) else {})}
    parameters = schema or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**function, "parameters": parameters}, **marks.of(at, tool)}
