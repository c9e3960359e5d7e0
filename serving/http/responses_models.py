"""The request of the Responses API, as a type; see models.py."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from serving.http.declaring import as_schema, doc, list_of, no_effect
from serving.http.fragments import INPUT_ITEM, RESPONSES_TOOL, TEXT_FORMAT, TOOL_CHOICE
from serving.http.models import EFFORT, EFFORTS, Sampling
from serving.request import MAX_MESSAGES, MAX_TOOLS

MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE = 16, 64, 512  # pairs, characters: OpenAI's
MAX_RESPONSE_ID = 256  # characters
MAX_LISTED, LISTED = 100, 20  # items of a response in an answer: at most, and by default; OpenAI's
VERBOSITIES = ("low", "medium", "high")  # OpenAI's


class ReasoningOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    effort: Annotated[str | None, doc(EFFORT, enum=[*EFFORTS, None])] = None
    summary: Annotated[str | None, no_effect("reasoning comes as it is, none is summarized", "none")] = None


class TextOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    format: Annotated[Any, as_schema("What the text must be", TEXT_FORMAT)] = None
    verbosity: Annotated[
        str | None, doc("How much the model says, where its chat template asks", enum=[*VERBOSITIES, None])
    ] = None


class ResponsesStreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    include_obfuscation: Annotated[bool | None, no_effect("nothing is obfuscated", False)] = None


# What both requests have.
Input = Annotated[
    str | list[dict[str, Any]],
    as_schema(
        "A user's message, or a list of messages, function calls and their outputs; only text parts",
        {"anyOf": [{"type": "string"}, list_of(INPUT_ITEM, minItems=1, maxItems=MAX_MESSAGES)]},
        null=False,
    ),
]
Instructions = Annotated[str | None, doc("The system's message")]
Previous = Annotated[
    str | None, doc("The stored response that the conversation goes on from", maxLength=MAX_RESPONSE_ID)
]
Tools = Annotated[
    list[dict[str, Any]] | None,
    as_schema(
        "Functions that the model may call, and namespaces of them; other tools are reported",
        list_of(RESPONSES_TOOL, maxItems=MAX_TOOLS),
    ),
]
Choice = Annotated[Any, as_schema("Whether functions are called, and which", TOOL_CHOICE)]
Variables = Annotated[
    dict[str, Any] | None, doc('Further variables of the template, such as {"enable_thinking": false}')
]
Text = Annotated[TextOptions | None, doc("How the model writes")]
Truncation = Annotated[
    str | None,
    doc("auto: leave out the oldest turns of a conversation that is too long", enum=["auto", "disabled", None]),
]
Reasoning = Annotated[ReasoningOptions | None, doc("How the model reasons")]
Conversation = Annotated[Any, doc("Only null: use previous_response_id", enum=[None])]


class ResponsesRequest(Sampling, kw_only=True):
    """POST /v1/responses"""

    input: Input
    instructions: Instructions = None
    previous_response_id: Previous = None
    store: Annotated[bool | None, doc("Keep the response, to go on from or to fetch (on)")] = None
    max_output_tokens: Annotated[
        int | None, doc("Most tokens of the answer; left out, or more: what the context leaves", minimum=1)
    ] = None
    top_logprobs: Annotated[int | None, doc("Alternatives per token; needs include", minimum=0)] = None
    include: Annotated[
        list[str] | None,
        as_schema(
            "What to give besides: message.output_text.logprobs; what else OpenAI knows is taken",
            list_of({"type": "string"}),
        ),
    ] = None
    tools: Tools = None
    include_reasoning: Annotated[bool | None, doc("Give the model's reasoning (on)")] = None
    parallel_tool_calls: Annotated[bool | None, doc("false: at most one call in an answer")] = None
    tool_choice: Choice = None
    chat_template_kwargs: Variables = None
    metadata: Annotated[dict[str, str] | None, doc("Comes back with the answer")] = None
    text: Text = None
    truncation: Truncation = None
    reasoning: Reasoning = None
    stream_options: Annotated[ResponsesStreamOptions | None, doc("Usage always comes")] = None
    max_tool_calls: Annotated[
        int | None, no_effect("it counts calls of tools that the server runs, and this one runs none")
    ] = None
    background: Annotated[Any, doc("Only false", enum=[False, None])] = None
    conversation: Conversation = None
    prompt: Annotated[Any, doc("Only null", enum=[None])] = None


class ResponseTokensRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses/input_tokens"""

    input: Input
    model: Annotated[str | None, doc("Name of the served model; may be left out")] = None
    instructions: Instructions = None
    previous_response_id: Previous = None
    tools: Tools = None
    tool_choice: Choice = None
    parallel_tool_calls: Annotated[bool | None, no_effect("it changes no prompt", True, False)] = None
    chat_template_kwargs: Variables = None
    text: Text = None
    truncation: Truncation = None
    reasoning: Reasoning = None
    conversation: Conversation = None
