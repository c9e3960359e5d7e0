"""Messages and tools as OpenAI's clients send them, made into what chat templates read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.sampling_params import InvalidRequest
from serving.request import MAX_MESSAGES, MAX_TOOLS

# Newer clients write developer; templates know system.
_ROLES = {"developer": "system"}
_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning")
# A client that sends an answer back sends these too, empty.
_EMPTY_KEYS = ("refusal", "annotations", "audio", "function_call")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_FUNCTION_KEYS = {"name": str, "description": str, "parameters": dict, "strict": bool}


def messages(given: Sequence[Mapping[str, Any]], name: str = "messages") -> list[dict[str, Any]]:
    """Raises InvalidRequest naming the field. What only a template can judge is left to it."""
    if not given:
        raise InvalidRequest(name, [], "it must hold at least one message")
    if len(given) > MAX_MESSAGES:
        raise InvalidRequest(name, f"{len(given)} messages", f"at most {MAX_MESSAGES} are allowed")
    return [_message(f"{name}[{i}]", message) for i, message in enumerate(given)]


def _message(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in message.items():
        if value is None or (key in _EMPTY_KEYS and not value):
            continue
        if key not in _MESSAGE_KEYS:
            raise InvalidRequest(f"{name}.{key}", value, f"a message may have {', '.join(_MESSAGE_KEYS)}")
        result[key] = value
    role = result.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"{name}.role", role, "it must be system, user, assistant, tool or another that the chat template knows"
        )
    result["role"] = _ROLES.get(role, role)
    if "content" in result:
        result["content"] = text_of(f"{name}.content", result["content"], ("text",))
    for key in ("name", "tool_call_id", "reasoning_content", "reasoning"):
        if key in result and not isinstance(result[key], str):
            raise InvalidRequest(f"{name}.{key}", result[key], "it must be a string")
    if "tool_calls" in result:
        result["tool_calls"] = _tool_calls(f"{name}.tool_calls", result["tool_calls"])
    return result


def text_of(name: str, content: Any, kinds: Sequence[str]) -> str:
    """The text of a content: a string, or text parts, which become lines. Raises InvalidRequest."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(name, content, "it must be a string or a list of text parts")
    texts = []
    for i, part in enumerate(content):
        at = f"{name}[{i}]"
        if not isinstance(part, dict):
            raise InvalidRequest(at, part, f'it must be an object like {{"type": "{kinds[0]}", "text": "..."}}')
        if part.get("type") not in kinds:
            raise InvalidRequest(f"{at}.type", part.get("type"), f"only {' and '.join(kinds)} parts are supported")
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f"{at}.text", part.get("text"), "it must be a string")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_calls(name: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(name, calls, "it must be a list of function calls")
    result = []
    for i, call in enumerate(calls):
        at = f"{name}[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or call.get("type", "function") != "function":
            raise InvalidRequest(at, call, 'it must be {"id": ..., "type": "function", "function": {...}}')
        if not isinstance(function.get("name"), str) or not function["name"]:
            raise InvalidRequest(f"{at}.function.name", function.get("name"), "it must be a string")
        arguments = json_arguments(f"{at}.function.arguments", function.get("arguments"))
        result.append({**call, "type": "function", "function": {**function, "arguments": arguments}})
    return result


def json_arguments(name: str, text: Any) -> dict[str, Any]:
    """Templates render arguments as JSON themselves, so they get the object."""
    try:
        value = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise InvalidRequest(name, text, "it must be a string that holds a JSON object")
    return value


def tools(given: Sequence[Mapping[str, Any]] | None, *, flat: bool = False) -> list[dict[str, Any]]:
    """The tools as templates read them, in chat completions' shape. flat: as the Responses API writes them."""
    if given and len(given) > MAX_TOOLS:
        raise InvalidRequest("tools", f"{len(given)} tools", f"at most {MAX_TOOLS} are allowed")
    result = []
    for i, tool in enumerate(given or ()):
        at = f"tools[{i}]"
        if tool.get("type") != "function":
            raise InvalidRequest(f"{at}.type", tool.get("type"), "only functions are supported")
        at, function = (at, {k: v for k, v in tool.items() if k != "type"}) if flat else _function(at, tool)
        for key, value in function.items():
            if key not in _FUNCTION_KEYS:
                raise InvalidRequest(f"{at}.{key}", value, f"a function may have {', '.join(_FUNCTION_KEYS)}")
            if key == "strict" and value:
                raise InvalidRequest(f"{at}.strict", value, "only false is supported: there is no structured output")
            if value is not None and not isinstance(value, _FUNCTION_KEYS[key]):
                raise InvalidRequest(f"{at}.{key}", value, f"it must be of type {_FUNCTION_KEYS[key].__name__}")
        if not _TOOL_NAME.fullmatch(function.get("name") or ""):
            allowed = "it must be 1 to 64 letters, digits, dots, underscores or dashes"
            raise InvalidRequest(f"{at}.name", function.get("name"), allowed)
        kept = {key: value for key, value in function.items() if value is not None and key != "strict"}
        result.append({"type": "function", "function": kept})
    return result


def _function(at: str, tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    unknown = next((key for key in tool if key not in ("type", "function")), None)
    if unknown is not None:
        raise InvalidRequest(f"{at}.{unknown}", tool[unknown], "a tool has type and function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"{at}.function", function, "it must be an object")
    return f"{at}.function", function


def tool_names(given: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(tool["function"]["name"] for tool in given)
