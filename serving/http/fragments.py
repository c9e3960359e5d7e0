"""Parts of the document that are checked by hand: messages and tools reach the chat template as they were sent."""

from __future__ import annotations

from typing import Any

TEXT_PARTS: dict[str, Any] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"type": {"enum": ["text"]}, "text": {"type": "string"}},
        "required": ["type", "text"],
        "additionalProperties": False,
    },
}
TOOL_CALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "string"},
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1},
                "arguments": {"type": "string", "description": "A JSON object"},
            },
            "required": ["name", "arguments"],
        },
    },
    "required": ["function"],
}
MESSAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "role": {
            "type": "string",
            "minLength": 1,
            "description": "system, developer (the same), user, assistant, tool, or another that the template knows",
        },
        "content": {"anyOf": [{"type": "string"}, TEXT_PARTS, {"type": "null"}]},
        "name": {"type": "string"},
        "tool_calls": {"type": "array", "items": TOOL_CALL},
        "tool_call_id": {"type": "string"},
        "reasoning_content": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "reasoning": {"anyOf": [{"type": "string"}, {"type": "null"}]},
    },
    "required": ["role"],
    # An assistant's message may have something else instead.
    "anyOf": [{"required": [name]} for name in ("content", "tool_calls", "reasoning_content", "reasoning")],
    "additionalProperties": False,
}
FUNCTION: dict[str, Any] = {
    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
    "description": {"type": "string"},
    "parameters": {"type": "object"},
    "strict": {"enum": [False, None]},
}
TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["function"]},
        "function": {
            "type": "object",
            "properties": FUNCTION,
            "required": ["name"],
            "additionalProperties": False,
        },
    },
    "required": ["type", "function"],
    "additionalProperties": False,
}
FLAT_TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": ["function"]}, **FUNCTION},
    "required": ["type", "name"],
    "additionalProperties": False,
}


def _parts(*kinds: str) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {
            "type": "object",
            "properties": {"type": {"enum": list(kinds)}, "text": {"type": "string"}},
            "required": ["type", "text"],
        },
    }


INPUT_ITEM: dict[str, Any] = {
    "anyOf": [
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["message"]},
                "role": {"enum": ["system", "developer", "user", "assistant"]},
                "content": {"anyOf": [{"type": "string"}, _parts("input_text", "output_text")]},
            },
            "required": ["role", "content"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["function_call"]},
                "call_id": {"type": "string"},
                "name": {"type": "string", "minLength": 1},
                "arguments": {"type": "string", "description": "A JSON object"},
            },
            "required": ["type", "call_id", "name", "arguments"],
        },
        {
            "type": "object",
            "properties": {
                "type": {"enum": ["function_call_output"]},
                "call_id": {"type": "string"},
                "output": {"anyOf": [{"type": "string"}, _parts("input_text")]},
            },
            "required": ["type", "call_id", "output"],
        },
        {
            "type": "object",
            "properties": {"type": {"enum": ["reasoning"]}, "content": _parts("reasoning_text")},
            "required": ["type"],
        },
    ]
}
