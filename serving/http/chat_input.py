"""Messages and tools as OpenAI's clients send them, made into what chat templates read.

Here only shapes are judged, so that errors name the field as it was sent. What empty and unreadable values mean to a
template is settled for all servers in jaxinfer/text/conversation.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.text.conversation import TEXT_PARTS, as_arguments, joined, of_another_modality
from serving.http import ignored
from serving.request import MAX_MESSAGES, MAX_TOOLS, check_count

_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_TEXT_KEYS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
# Clients and proxies send these beside a message, or with an answer that they send back. They say nothing that a
# template could show; vLLM passes over them too.
_DROPPED_KEYS = ("annotations", "id", "cache_control", "provider_specific_fields", "reasoning_details")
# What these say would have to reach the model, and cannot: to leave them out would answer another conversation.
_REFUSED_KEYS = ("audio", "function_call")
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_FUNCTION_KEYS = {"name": str, "description": str, "parameters": dict, "strict": bool}
# OpenAI: to leave parameters out is to define a function without any.
_NO_PARAMETERS = {"type": "object", "properties": {}}
_ONLY_FUNCTIONS = "only functions are supported"
_NOTHING: tuple[Any, ...] = (None, "", [], {})


def says_nothing(value: Any) -> bool:
    """Whether a value is one of the spellings of "absent"."""
    return any(value == nothing and type(value) is type(nothing) for nothing in _NOTHING)


def messages(given: Sequence[Mapping[str, Any]], name: str = "messages") -> list[dict[str, Any]]:
    """Raises InvalidRequest naming the field. What only a template can judge is left to it."""
    if not given:
        raise InvalidRequest(name, [], "it must hold at least one message")
    check_count(name, given, MAX_MESSAGES, "messages")
    return [_message(f"{name}[{i}]", message) for i, message in enumerate(given)]


def _message(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    refusal = message.get("refusal")
    for key, value in message.items():
        if _is_absent(key, value):
            continue
        if key == "refusal":
            if not isinstance(value, str):
                raise InvalidRequest(f"{name}.refusal", value, "it must be a string")
        elif key in _MESSAGE_KEYS:
            result[key] = value
        elif key in _DROPPED_KEYS:
            ignored.passed_over(f"{name}.{key}", key)
        else:
            allowed = f"a message may have {', '.join(_MESSAGE_KEYS)}"
            if key in _REFUSED_KEYS:
                raise InvalidRequest(f"{name}.{key}", value, allowed)
            ignored.unknown(f"{name}.{key}", value, _MESSAGE_KEYS, allowed)
    role = result.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(
            f"{name}.role", role, "it must be system, user, assistant, tool or another that the chat template knows"
        )
    content = content_of(f"{name}.content", result.get("content"))
    result["content"] = refusal if isinstance(refusal, str) and not content else content
    for key in _TEXT_KEYS:
        if key in result and not isinstance(result[key], str):
            raise InvalidRequest(f"{name}.{key}", result[key], "it must be a string")
    if "tool_calls" in result:
        calls = _tool_calls(f"{name}.tool_calls", result.pop("tool_calls"))
        if calls:
            result["tool_calls"] = calls
    return result


def _is_absent(key: str, value: Any) -> bool:
    """Whether a message does not have the key. An empty text is a text, and an empty list a content."""
    kept = "" if key in ("role", "content", *_TEXT_KEYS) else None
    return says_nothing(value) and (value is None or value != kept) and (key, value) != ("content", [])


def content_of(name: str, content: Any, kinds: Mapping[str, str] = TEXT_PARTS) -> str | list[dict[str, str]]:
    """A content as every template's use of it begins: a string, or a list of parts of type text.

    kinds: the types that parts may have, and the key of each that has the text. Raises InvalidRequest.
    """
    if isinstance(content, str) or (says_nothing(content) and content != []):
        return content or ""
    if not isinstance(content, list):
        raise InvalidRequest(name, content, "it must be a string or a list of text parts")
    parts = (_part_text(f"{name}[{i}]", part, kinds) for i, part in enumerate(content))
    return [{"type": "text", "text": text} for text in parts if text is not None]


def _part_text(name: str, part: Any, kinds: Mapping[str, str]) -> str | None:
    """None for a part whose text is null, which vLLM passes over too."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidRequest(name, part, f'it must be an object like {{"type": "{next(iter(kinds))}", "text": "..."}}')
    kind = part.get("type")
    if not isinstance(kind, str) or kind not in kinds:
        allowed = f"{of_another_modality(kind)}only {' and '.join(kinds)} parts are supported"
        raise InvalidRequest(f"{name}.type", kind, allowed)
    key = kinds[kind]
    text = part.get(key)
    if not isinstance(text, str) and not (text is None and key in part):
        raise InvalidRequest(f"{name}.{key}", text, "it must be a string")
    for other, value in part.items():
        if other not in ("type", key) and not says_nothing(value):
            ignored.passed_over(f"{name}.{other}", other if other in _DROPPED_KEYS else ignored.OTHER)
    return text


def text_of(name: str, content: Any, kinds: Mapping[str, str] = TEXT_PARTS) -> str:
    """The text of a content; parts become lines. Raises InvalidRequest."""
    return joined(content_of(name, content, kinds))


def _tool_calls(name: str, calls: Any) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise InvalidRequest(name, calls, "it must be a list of function calls")
    result = []
    for i, call in enumerate(calls):
        at = f"{name}[{i}]"
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(call, dict) and call.get("type") == "custom" and isinstance(call.get("custom"), dict):
            function = _of_custom(f"{at}.custom", call["custom"])
        elif not isinstance(function, dict) or not (says_nothing(call.get("type")) or call["type"] == "function"):
            raise InvalidRequest(at, call, 'it must be {"id": ..., "type": "function", "function": {...}}')
        if not isinstance(call.get("id"), str | None):
            raise InvalidRequest(f"{at}.id", call["id"], "it must be a string, or null")
        if not isinstance(function.get("name"), str):
            raise InvalidRequest(f"{at}.function.name", function.get("name"), "it must be a string")
        kept = {key: value for key, value in function.items() if value is not None}
        kept["arguments"] = as_arguments(function.get("arguments"))
        own = {key: value for key, value in call.items() if not says_nothing(value) and key != "custom"}
        result.append({**own, "type": "function", "function": kept})
    return result


def _of_custom(name: str, called: Mapping[str, Any]) -> dict[str, Any]:
    """The call of a tool that takes a text, which is the argument `input`, as in the Responses API."""
    if not isinstance(called.get("input"), str):
        raise InvalidRequest(f"{name}.input", called.get("input"), "it must be a string")
    return {"name": called.get("name"), "arguments": {"input": called["input"]}}


def tools(given: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The functions as templates read them, in chat completions' shape. Tools of other kinds, which a provider runs or
    whose calls are no JSON, are reported."""
    check_count("tools", given or (), MAX_TOOLS, "tools")
    result = []
    for i, tool in enumerate(given or ()):
        at = f"tools[{i}]"
        kind = tool.get("type")
        if not (says_nothing(kind) or isinstance(kind, str)):
            raise InvalidRequest(f"{at}.type", kind, _ONLY_FUNCTIONS)
        if kind and kind != "function":
            ignored.without_effect(f"{at}.type", kind, _ONLY_FUNCTIONS)
            continue
        result.append({"type": "function", "function": _checked_function(*_function(at, tool))})
    return result


def flat_function(at: str, tool: Mapping[str, Any]) -> dict[str, Any]:
    """A function as the Responses API writes it, without the envelope of chat completions."""
    return _checked_function(at, {key: value for key, value in tool.items() if key != "type"})


def _checked_function(at: str, function: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in function.items():
        if says_nothing(value):
            continue
        if key not in _FUNCTION_KEYS:
            allowed = f"a function may have {', '.join(_FUNCTION_KEYS)}"
            ignored.unknown(f"{at}.{key}", value, tuple(_FUNCTION_KEYS), allowed)
            continue
        if not isinstance(value, _FUNCTION_KEYS[key]):
            raise InvalidRequest(f"{at}.{key}", value, f"it must be of type {_FUNCTION_KEYS[key].__name__}")
    tool_name(f"{at}.name", function.get("name"))
    wanted = ("name", "description", "parameters")
    kept = {k: v for k, v in function.items() if k in wanted and (v == "" or not says_nothing(v))}
    return {**kept, "parameters": kept.get("parameters") or dict(_NO_PARAMETERS)}


def tool_name(at: str, name: Any) -> str:
    """Raises InvalidRequest."""
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        raise InvalidRequest(at, name, "it must be 1 to 64 letters, digits, dots, underscores or dashes")
    return name


def _function(at: str, tool: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    for key, value in tool.items():
        if key not in ("type", "function") and not says_nothing(value):
            ignored.unknown(f"{at}.{key}", value, ("type", "function"), "a tool has type and function")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"{at}.function", function, "it must be an object")
    return f"{at}.function", function
