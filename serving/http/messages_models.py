"""The requests of the Messages API, as types. Names are Anthropic's; fields that Anthropic does not have are named as
everywhere here (see models.py). Blocks and tools are checked by hand, in messages_input.py and messages_tools.py."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Struct

from serving.http.declaring import as_schema, doc, no_effect
from serving.http.fragments import STRING, array_of, or_null, schema_of
from serving.http.models import MAX_USER, Sampling
from serving.request import MAX_MESSAGES, MAX_TOOLS

STOP_REASONS = ("end_turn", "max_tokens", "model_context_window_exceeded", "stop_sequence", "tool_use", "refusal")
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]

_TYPED: dict[str, Any] = schema_of({"type": STRING})  # what else an object may have depends on its type
_BLOCKS = {"anyOf": [STRING, array_of({"anyOf": [_TYPED, STRING]})]}
_TURN = {**schema_of({"role": {"enum": ["user", "assistant", "system"]}, "content": or_null(_BLOCKS)}, "role")}
_TOOL = schema_of(
    {
        "name": STRING,
        "description": or_null(STRING),
        "input_schema": or_null({"type": "object"}),
        "type": {"type": ["string", "null"], "description": "custom; tools of other types are passed over"},
    },
    "name",
)


class Thinking(Struct, kw_only=True, forbid_unknown_fields=True):
    type: Annotated[
        str,
        doc(
            "disabled turns the chat template's thinking off, enabled, adaptive and between_tools turn it on, where it "
            "has such a variable; others are reported"
        ),
    ]
    budget_tokens: Annotated[
        int | None, doc("With the type enabled: the most tokens that an answer may reason, where the model reasons")
    ] = None
    display: Annotated[
        str | None,
        doc(
            "omitted: thinking blocks come without their text; else with it, as it is; others than summarized: reported"
        ),
    ] = None


class OutputFormat(Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Struct, kw_only=True, forbid_unknown_fields=True):
    effort: Annotated[
        Effort | None, doc("How much the model reasons, where its chat template has the variable reasoning_effort")
    ] = None
    format: Annotated[OutputFormat | None, doc("What the text must be: JSON of a schema")] = None


class ToolChoice(Struct, kw_only=True, forbid_unknown_fields=True):
    type: Annotated[Literal["auto", "any", "tool", "none"], doc("any: a call must come; tool: one of `name`")]
    name: Annotated[str | None, doc("With the type tool")] = None
    disable_parallel_tool_use: Annotated[bool | None, doc("true: at most one call in an answer")] = None


class Metadata(Struct, kw_only=True, forbid_unknown_fields=True):
    user_id: Annotated[str | None, doc("As user", maxLength=MAX_USER)] = None


# What both requests have.
Messages = Annotated[
    list[dict[str, Any]],
    as_schema(
        "The conversation: texts, documents that are text, search results, thinking, tool calls and their results",
        {**array_of(_TURN), "minItems": 1, "maxItems": MAX_MESSAGES},
        null=False,
    ),
]
System = Annotated[str | list[dict[str, Any]] | None, as_schema("The system's message", _BLOCKS)]
Tools = Annotated[
    list[dict[str, Any]] | None,
    as_schema("Functions that the model may call", {**array_of(_TOOL), "maxItems": MAX_TOOLS}),
]
Choice = Annotated[ToolChoice | None, doc("Whether the model may call")]
Thought = Annotated[Thinking | None, doc("Whether the model reasons")]
Output = Annotated[OutputConfig | None, doc("How the model answers")]
Variables = Annotated[
    dict[str, Any] | None, doc('Further variables of the template, such as {"enable_thinking": false}')
]
CacheControl = Annotated[
    dict[str, Any] | None,
    doc('Pin the prompt up to its last block: {"type": "ephemeral"}, with "ttl" "5m" or "1h"'),
]
Edits = Annotated[dict[str, Any] | None, no_effect("the conversation is taken as it was sent", {}, {"edits": []})]
Servers = Annotated[list[dict[str, Any]] | None, no_effect("this server calls no other ones", [])]
Speed = Annotated[str | None, no_effect("there is one speed; priority orders requests", "standard")]


class MessagesRequest(Sampling, kw_only=True):
    """POST /v1/messages"""

    max_tokens: Annotated[int, doc("Most tokens of the answer; more is what the context leaves", minimum=1)]
    messages: Messages
    system: System = None
    stop_sequences: Annotated[list[str] | None, doc("Strings that end the text, beside those of stop")] = None
    tools: Tools = None
    tool_choice: Choice = None
    thinking: Thought = None
    output_config: Output = None
    output_format: Annotated[OutputFormat | None, doc("Older name of output_config.format")] = None
    metadata: Annotated[Metadata | None, doc("Whom the request is for")] = None  # type: ignore[assignment]
    include_reasoning: Annotated[bool | None, doc("Give the model's thinking (on)")] = None
    chat_template_kwargs: Variables = None
    cache_control: CacheControl = None
    context_management: Edits = None
    mcp_servers: Servers = None
    speed: Speed = None
    thread: Annotated[dict[str, Any] | None, doc("Only null: the server holds no conversations", enum=[None])] = None
    container: Annotated[Any, no_effect("no code runs here")] = None
    inference_geo: Annotated[str | None, no_effect("the model runs where this server does")] = None
    service_tier: Annotated[
        str | None, no_effect("there is one tier; priority orders requests", "auto", "standard_only")
    ] = None


class MessageTokensRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens"""

    messages: Messages
    model: Annotated[str | None, doc("Name of the served model; may be left out")] = None
    system: System = None
    tools: Tools = None
    tool_choice: Choice = None
    thinking: Thought = None
    output_config: Output = None
    chat_template_kwargs: Variables = None
    cache_control: Annotated[dict[str, Any] | None, no_effect("what is only counted is not pinned")] = None
    context_management: Edits = None
    mcp_servers: Servers = None
    speed: Speed = None
