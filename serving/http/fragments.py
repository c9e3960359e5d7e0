"""Parts of the document that are checked by hand: messages and tools reach the chat template as they were sent."""

from __future__ import annotations

from typing import Any

from jaxinfer.text import conversation

# Spellings of "absent", which say nothing wherever they stand.
NOTHING: dict[str, Any] = {"enum": [None, "", [], {}]}


def _parts(**kinds: str) -> dict[str, Any]:
    """Text parts: type -> the key of the text."""
    parts = [
        {
            "type": "object",
            "properties": {"type": {"enum": [kind]}, key: {"type": ["string", "null"]}},
            "required": ["type", key],
        }
        for kind, key in kinds.items()
    ]
    return {"type": "array", "items": {"anyOf": [*parts, {"type": "string"}]}}


TEXT_PARTS: dict[str, Any] = _parts(**conversation.TEXT_PARTS)
CONTENT: dict[str, Any] = {"anyOf": [{"type": "string"}, TEXT_PARTS, {"type": "null"}]}
ARGUMENTS: dict[str, Any] = {"description": "A JSON object as a string, or as it is; what cannot be read counts as {}"}
TOOL_CALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": ["string", "null"]},
        "type": {"enum": ["function", None]},
        "function": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "arguments": ARGUMENTS},
            "required": ["name"],
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
            "description": "system, developer (system to templates that do not know it), user, assistant, tool, or "
            "another that the template knows",
        },
        "content": CONTENT,
        "name": {"type": ["string", "null"]},
        "tool_calls": {"anyOf": [{"type": "array", "items": TOOL_CALL}, NOTHING]},
        "tool_call_id": {"type": ["string", "null"]},
        "reasoning_content": {"type": ["string", "null"]},
        "reasoning": {"type": ["string", "null"]},
        "thinking": {"type": ["string", "null"]},
        "refusal": {"anyOf": [{"type": "string"}, NOTHING]},
        **{
            key: {"description": "Of an answer that is sent back, or of a proxy; nothing is made of it"}
            for key in ("annotations", "id", "cache_control", "provider_specific_fields", "reasoning_details")
        },
    },
    "required": ["role"],
    "additionalProperties": NOTHING,
}
FUNCTION: dict[str, Any] = {
    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
    "description": {"type": ["string", "null"]},
    "parameters": {"type": ["object", "null"]},
    "strict": {"enum": [False, None]},
}
TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "type": {"enum": ["function", None]},
        "function": {
            "type": "object",
            "properties": FUNCTION,
            "required": ["name"],
            "additionalProperties": NOTHING,
        },
    },
    "required": ["function"],
    "additionalProperties": NOTHING,
}
FLAT_TOOL: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"enum": ["function", None]}, **FUNCTION},
    "required": ["name"],
    "additionalProperties": NOTHING,
}


def _item(kind: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"type": {"enum": [kind]}, **properties},
        "required": ["type", *required],
    }


_MESSAGE_ITEM = _item(
    "message", ("role",), role={"enum": ["system", "developer", "user", "assistant"]}, content=CONTENT
)
INPUT_ITEM: dict[str, Any] = {
    "anyOf": [
        {
            **_MESSAGE_ITEM,
            "properties": {**_MESSAGE_ITEM["properties"], "type": {"enum": ["message", None]}},
            "required": ["role"],
        },
        _item(
            "function_call",
            ("call_id", "name"),
            call_id={"type": "string"},
            name={"type": "string"},
            arguments=ARGUMENTS,
        ),
        _item("function_call_output", ("call_id",), call_id={"type": "string"}, output=CONTENT),
        _item(
            "reasoning",
            (),
            content={"anyOf": [{"type": "string"}, _parts(reasoning_text="text", text="text"), {"type": "null"}]},
            summary={"anyOf": [{"type": "string"}, _parts(summary_text="text"), {"type": "null"}]},
        ),
    ]
}
