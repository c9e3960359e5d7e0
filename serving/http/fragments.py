"""Parts of the document that are checked by hand: messages and tools reach the chat template as they were sent."""

from __future__ import annotations

from typing import Any

from jaxinfer.text import conversation

STRING: dict[str, Any] = {"type": "string"}


def schema_of(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """Of an object. required: all properties, unless some are named."""
    return {"type": "object", "properties": properties, "required": list(required or properties)}


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def array_of(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema}


# Spellings of "absent", which say nothing wherever they stand.
NOTHING: dict[str, Any] = {"enum": [None, "", [], {}]}


def _parts(**kinds: str) -> dict[str, Any]:
    """Text parts: type -> the key of the text."""
    parts = [schema_of({"type": {"enum": [kind]}, key: {"type": ["string", "null"]}}) for kind, key in kinds.items()]
    return array_of({"anyOf": [*parts, STRING]})


TEXT_PARTS: dict[str, Any] = _parts(**conversation.TEXT_PARTS)
CONTENT: dict[str, Any] = {"anyOf": [STRING, TEXT_PARTS, {"type": "null"}]}
ARGUMENTS: dict[str, Any] = {"description": "A JSON object as a string, or as it is; what cannot be read counts as {}"}
TOOL_CALL: dict[str, Any] = schema_of(
    {
        "id": {"type": ["string", "null"]},
        "type": {"enum": ["function", None]},
        "function": schema_of({"name": STRING, "arguments": ARGUMENTS}, "name"),
    },
    "function",
)
MESSAGE: dict[str, Any] = {
    **schema_of(
        {
            "role": {
                "type": "string",
                "minLength": 1,
                "description": "system, developer (system to templates that do not know it), user, assistant, tool, or "
                "another that the template knows",
            },
            "content": CONTENT,
            "name": {"type": ["string", "null"]},
            "tool_calls": {"anyOf": [array_of(TOOL_CALL), NOTHING]},
            **{
                key: {"type": ["string", "null"]}
                for key in ("tool_call_id", "reasoning_content", "reasoning", "thinking")
            },
            "refusal": {"anyOf": [STRING, NOTHING]},
            **{key: {"description": "Cannot reach the model", **NOTHING} for key in ("audio", "function_call")},
            **{
                key: {"description": "Of an answer that is sent back, or of a proxy; nothing is made of it"}
                for key in ("annotations", "id", "cache_control", "provider_specific_fields", "reasoning_details")
            },
        },
        "role",
    ),
    "additionalProperties": NOTHING,
}
FUNCTION: dict[str, Any] = {
    "name": {"type": "string", "pattern": "^[a-zA-Z0-9_.-]{1,64}$"},
    "description": {"type": ["string", "null"]},
    "parameters": {"type": ["object", "null"]},
    "strict": {"type": ["boolean", "null"], "description": "Hold the arguments to the parameters' schema"},
}
_TOOL_TYPE: dict[str, Any] = {"type": {"enum": ["function", None]}}
_FUNCTION_OF_TOOL = {**schema_of(FUNCTION, "name"), "additionalProperties": NOTHING}
TOOL: dict[str, Any] = {
    **schema_of({**_TOOL_TYPE, "function": _FUNCTION_OF_TOOL}, "function"),
    "additionalProperties": NOTHING,
}
_FLAT_TOOL: dict[str, Any] = {**schema_of({**_TOOL_TYPE, **FUNCTION}, "name"), "additionalProperties": NOTHING}
_NAMESPACE: dict[str, Any] = schema_of(
    {
        "type": {"enum": ["namespace"]},
        "name": FUNCTION["name"],
        "description": FUNCTION["description"],
        "tools": array_of(_FLAT_TOOL),
    },
    "type",
    "name",
    "tools",
)
RESPONSES_TOOL: dict[str, Any] = {"anyOf": [_FLAT_TOOL, _NAMESPACE]}


def _item(kind: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return schema_of({"type": {"enum": [kind]}, **properties}, "type", *required)


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
            call_id=STRING,
            name=STRING,
            namespace={"type": ["string", "null"]},
            arguments=ARGUMENTS,
        ),
        _item("function_call_output", ("call_id",), call_id=STRING, output=CONTENT),
        _item(
            "reasoning",
            (),
            content={"anyOf": [STRING, _parts(reasoning_text="text", text="text"), {"type": "null"}]},
            summary={"anyOf": [STRING, _parts(summary_text="text"), {"type": "null"}]},
        ),
        _item("item_reference", ("id",), id=STRING),
    ]
}


_SCHEMA: dict[str, Any] = {"type": "object", "description": "A JSON schema"}
STRUCTURED_OUTPUTS: dict[str, Any] = {
    "type": "object",
    "description": "One of the first six, beside the others: see structured_output.md",
    "properties": {
        "json": {"anyOf": [_SCHEMA, STRING]},
        "regex": STRING,
        "choice": {"type": "array", "items": STRING, "minItems": 1},
        "grammar": STRING,
        "json_object": {"enum": [True]},
        "structural_tag": {"anyOf": [{"type": "object"}, STRING]},
        "disable_any_whitespace": {"type": "boolean"},
        "disable_additional_properties": {"type": "boolean"},
        "whitespace_pattern": STRING,
    },
    "additionalProperties": False,
}
_NAMED_SCHEMA = {
    "name": {"type": ["string", "null"]},
    "description": {"type": ["string", "null"]},
    "strict": {"type": ["boolean", "null"]},
    "schema": _SCHEMA,
}
_PLAIN_FORMATS = [schema_of({"type": {"enum": ["text", "json_object"]}})]
RESPONSE_FORMAT: dict[str, Any] = {
    "anyOf": [
        *_PLAIN_FORMATS,
        schema_of({"type": {"enum": ["json_schema"]}, "json_schema": schema_of(_NAMED_SCHEMA, "schema")}),
        schema_of(
            {"type": {"enum": ["structural_tag"]}, "structures": {"type": "array"}, "triggers": {"type": "array"}}
        ),
    ]
}
TEXT_FORMAT: dict[str, Any] = {
    "anyOf": [*_PLAIN_FORMATS, schema_of({"type": {"enum": ["json_schema"]}, **_NAMED_SCHEMA}, "type", "schema")]
}
_FUNCTION_BY_NAME = {
    "anyOf": [
        schema_of({"type": {"enum": ["function"]}, "function": schema_of({"name": STRING})}),
        schema_of({"type": {"enum": ["function"]}, "name": STRING}),
    ]
}
_ALLOWED = {"mode": {"enum": ["auto", "required"]}, "tools": {**array_of(_FUNCTION_BY_NAME), "minItems": 1}}
TOOL_CHOICE: dict[str, Any] = {
    "anyOf": [
        {"enum": ["auto", "none", "required", "any"], "description": "any: another word for required"},
        _FUNCTION_BY_NAME,
        schema_of({"type": {"enum": ["allowed_tools"]}, **_ALLOWED}),
        schema_of({"type": {"enum": ["allowed_tools"]}, "allowed_tools": schema_of(_ALLOWED)}),
    ]
}
