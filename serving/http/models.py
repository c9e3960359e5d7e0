"""The requests of the HTTP server, as types: they decode JSON, find what they do not know, and become the document.

Names are OpenAI's; fields that OpenAI does not have are named as vLLM names them. null means "not given" everywhere.
What sampling fields are, and their ranges, is declared once, with `SamplingParams`, which checks them for every server.
Every field takes effect, goes to the usage ledger (RECORDED), is reported to have no effect (NoEffect), or is refused
by name (REFUSED): see tests/serving/http.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct, defstruct

from jaxinfer.sampling_params import FIELDS
from serving.http.declaring import Refused
from serving.http.declaring import as_schema as _as
from serving.http.declaring import doc as _doc
from serving.http.declaring import list_of as _list
from serving.http.declaring import no_effect as _no_effect
from serving.http.fragments import MESSAGE, RESPONSE_FORMAT, STRUCTURED_OUTPUTS, TOOL, TOOL_CHOICE
from serving.prompts import MAX_SESSION_ID
from serving.request import MAX_CACHE_SALT, MAX_MESSAGES, MAX_REQUEST_ID, MAX_TOOLS

MAX_PROMPTS = 1024  # of one completion request
MAX_USER = 512  # characters

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # OpenAI's, and Anthropic's
EFFORT = "How much the model reasons, where its chat template asks; gpt-oss knows low, medium and high"
_TEMPLATE = "Name of one of the model's chat templates; with --trust-request-chat-template also a template (Jinja)"
_BUDGET = "The most tokens that an answer may reason; then its reasoning is closed. 0: none. For models that reason"
_TEXT = {"type": "string"}  # an empty one is a prompt where the tokenizer adds a token of its own
_TOKEN_ID = {"type": "integer", "minimum": 0}


def _ids(description: str, *, null: bool = True) -> Meta:
    return _as(description, _list(_TOKEN_ID), null=null)


_TYPES: Mapping[str, Any] = {
    "integer": int,
    "number": float,
    "boolean": bool,
    "strings": str | list[str],
    "token_ids": list[int],
    "logit_bias": dict[str, float],
    "structured": dict[str, Any],
}


def _declared(name: str) -> Meta:
    """What the document says of a sampling field."""
    declared = FIELDS[name]
    if declared.kind == "token_ids":
        return _ids(declared.sentence)
    if declared.kind == "logit_bias":
        return _doc(declared.sentence, propertyNames={"pattern": "^[0-9]+$"})
    if declared.kind == "structured":
        return _as(declared.sentence, STRUCTURED_OUTPUTS)
    if declared.kind == "boolean":
        return _doc(declared.sentence + (" (on)" if declared.default else ""))
    low = None if declared.low is None else min([declared.low, *declared.special])
    bounds = {"exclusiveMinimum" if declared.above else "minimum": low, "maximum": declared.high}
    return _doc(declared.sentence, **{bound: value for bound, value in bounds.items() if value is not None})


class _Addressed(Struct, kw_only=True, forbid_unknown_fields=True):
    model: Annotated[str | None, _doc("Name of the served model; may be left out")] = None
    stream: Annotated[bool | None, _doc("Send the answer in pieces, as server-sent events")] = None


if TYPE_CHECKING:
    _Declared = _Addressed  # its further fields are read by their declared names alone
else:
    _Declared = defstruct(
        "_Declared",
        [
            (name, Annotated[_TYPES[declared.kind] | None, _declared(name)], None)
            for name, declared in FIELDS.items()
            if declared.http == "every"
        ],
        bases=(_Addressed,),
        kw_only=True,
        forbid_unknown_fields=True,
    )


class Sampling(_Declared, kw_only=True, forbid_unknown_fields=True):
    """What all requests for text share: with every sampling field whose name and meaning is the same for all."""

    priority: Annotated[int | None, _doc("Lower is served first; 0 is normal", minimum=-(2**31), maximum=2**31 - 1)] = (
        None
    )
    cache_salt: Annotated[
        str | None, _doc("Share cached prefixes only with requests of the same salt", maxLength=MAX_CACHE_SALT)
    ] = None
    request_id: Annotated[
        str | None,
        _doc("Becomes part of the answer's id; unique among the requests that are alive", maxLength=MAX_REQUEST_ID),
    ] = None
    user: Annotated[str | None, _doc("Your end user; recorded for the usage ledger", maxLength=MAX_USER)] = None
    safety_identifier: Annotated[str | None, _doc("As user", maxLength=MAX_USER)] = None
    prompt_cache_key: Annotated[
        str | None,
        _no_effect("every prompt finds what it shares with earlier ones, whatever its key; session_id pins"),
    ] = None
    prompt_cache_retention: Annotated[
        str | None, _doc("24h: as session_id, for 24 hours; in_memory: until its room is needed, as always")
    ] = None
    session_id: Annotated[
        str | None,
        _doc("Your conversation, of which prompt and answer stay cached for the next turn", maxLength=MAX_SESSION_ID),
    ] = None
    service_tier: Annotated[
        str | None, _no_effect("there is one tier; priority orders requests", "auto", "default")
    ] = None
    store: Annotated[bool | None, _no_effect("nothing is stored", False)] = None
    metadata: Annotated[dict[str, Any] | None, _no_effect("nothing is stored that it could describe", {})] = None
    client_metadata: Annotated[dict[str, Any] | None, _no_effect("it tells of the client, not of the request", {})] = (
        None
    )


class StreamOptions(Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: Annotated[bool | None, _doc("A last event with the usage of the whole request")] = None
    continuous_usage_stats: Annotated[bool | None, _doc("The usage so far in every event")] = None
    include_obfuscation: Annotated[bool | None, _no_effect("nothing is obfuscated", False)] = None


class TextSampling(Sampling, kw_only=True):
    """What completions and chats share beyond that."""

    n: Annotated[int | None, _declared("n")] = None
    stream_options: Annotated[StreamOptions | None, _doc("With stream: what the events say about usage")] = None
    prompt_logprobs: Annotated[int | None, _declared("prompt_logprobs")] = None
    logprob_token_ids: Annotated[
        list[int] | None, _ids("With logprobs: the alternatives at every position, instead of the likeliest")
    ] = None
    return_token_ids: Annotated[bool | None, _doc("Give token ids of prompt and answers")] = None
    return_tokens_as_token_ids: Annotated[bool | None, _doc('Name tokens in logprobs "token_id:15"')] = None
    response_format: Annotated[Any, _as("What the text must be", RESPONSE_FORMAT)] = None
    guided_json: Annotated[Any, _doc("Only null: use structured_outputs", enum=[None])] = None
    guided_regex: Annotated[Any, _doc("Only null: use structured_outputs", enum=[None])] = None
    guided_choice: Annotated[Any, _doc("Only null: use structured_outputs", enum=[None])] = None
    guided_grammar: Annotated[Any, _doc("Only null: use structured_outputs", enum=[None])] = None
    guided_whitespace_pattern: Annotated[Any, _doc("Only null: use structured_outputs", enum=[None])] = None
    truncation_side: Annotated[
        str | None,
        _doc("With truncate_prompt_tokens: left cuts the beginning off, right the end", enum=["left", "right", None]),
    ] = None
    bad_words: Annotated[list[str] | None, _as("Words that are never generated", _list({"type": "string"}))] = None
    stream_interval: Annotated[
        int | None, _doc("With stream: tokens that an event has at least, behind the first", minimum=1)
    ] = None
    use_beam_search: Annotated[Any, _doc("Only false", enum=[False, None])] = None
    length_penalty: Annotated[Any, _doc("Only 1", enum=[1, None])] = None
    spaces_between_special_tokens: Annotated[Any, _doc("Only true", enum=[True, None])] = None


class CompletionRequest(TextSampling, kw_only=True):
    """POST /v1/completions"""

    prompt: Annotated[
        str | list[str | int | list[int]],
        _as(
            f"A text, a list of token ids, or a list of up to {MAX_PROMPTS} of either",
            {
                "anyOf": [
                    _TEXT,
                    _list(_TEXT, minItems=1, maxItems=MAX_PROMPTS),
                    _list(_TOKEN_ID, minItems=1),
                    _list(_list(_TOKEN_ID, minItems=1), minItems=1, maxItems=MAX_PROMPTS),
                ]
            },
            null=False,
        ),
    ]
    max_tokens: Annotated[
        int | None,
        _doc("Most tokens of an answer (16); at most what the context leaves; 0 only with echo", minimum=0),
    ] = None
    logprobs: Annotated[int | None, _doc("Log-probabilities, with so many alternatives", minimum=-1)] = None
    echo: Annotated[bool | None, _doc("Put the prompt in front of the text")] = None
    add_special_tokens: Annotated[bool | None, _doc("Let the tokenizer put its special tokens around a text (on)")] = (
        None
    )
    suffix: Annotated[Any, _doc("Only null", enum=[None])] = None
    best_of: Annotated[Any, _doc("Only the value of n", minimum=1)] = None


class ChatRequest(TextSampling, kw_only=True):
    """POST /v1/chat/completions"""

    messages: Annotated[
        list[dict[str, Any]],
        _as("The conversation; only text parts", _list(MESSAGE, minItems=1, maxItems=MAX_MESSAGES), null=False),
    ]
    tools: Annotated[
        list[dict[str, Any]] | None,
        _as("Functions that the model may call", _list(TOOL, maxItems=MAX_TOOLS)),
    ] = None
    add_generation_prompt: Annotated[bool | None, _doc("Open the assistant's message (on)")] = None
    chat_template: Annotated[str | None, _doc(_TEMPLATE)] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, _doc('Further variables of the template, such as {"enable_thinking": false}')
    ] = None
    continue_final_message: Annotated[
        bool | None, _doc("Go on with the last message; add_generation_prompt is off")
    ] = None
    max_tokens: Annotated[int | None, _doc("Older name of max_completion_tokens", minimum=1)] = None
    max_completion_tokens: Annotated[
        int | None, _doc("Most tokens of an answer; left out, or more: what the context leaves", minimum=1)
    ] = None
    logprobs: Annotated[bool | None, _doc("Log-probabilities of the answer's tokens")] = None
    top_logprobs: Annotated[int | None, _doc("Alternatives per token; needs logprobs", minimum=0)] = None
    documents: Annotated[list[dict[str, Any]] | None, _doc("Documents for templates that take them")] = None
    include_reasoning: Annotated[bool | None, _doc("Give the model's reasoning (on)")] = None
    parallel_tool_calls: Annotated[bool | None, _doc("false: at most one call in an answer")] = None
    tool_choice: Annotated[Any, _as("Whether functions are called, and which", TOOL_CHOICE)] = None
    add_special_tokens: Annotated[Any, _doc("Only false: templates write them", enum=[False, None])] = None
    echo: Annotated[Any, _doc("Only false", enum=[False, None])] = None
    functions: Annotated[Any, _doc("Only null or []: use tools", enum=[[], None])] = None
    function_call: Annotated[Any, _doc("Only null, auto or none: use tool_choice", enum=["auto", "none", None])] = None
    modalities: Annotated[Any, _doc('Only ["text"]', enum=[["text"], None])] = None
    audio: Annotated[Any, _doc("Only null", enum=[None])] = None
    prediction: Annotated[
        dict[str, Any] | None, _no_effect("what the answer may be makes it no faster here; it changes no answer", {})
    ] = None
    reasoning_effort: Annotated[str | None, _doc(EFFORT, enum=[*EFFORTS, None])] = None
    thinking_token_budget: Annotated[int | None, _doc(_BUDGET, minimum=0)] = None
    verbosity: Annotated[
        str | None, _no_effect("chat templates have no word for it: ask for short answers in a message")
    ] = None
    web_search_options: Annotated[dict[str, Any] | None, _no_effect("nothing is searched here")] = None


class TokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /tokenize: a prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[
        list[dict[str, Any]] | None,
        _as("Instead of prompt", _list(MESSAGE, minItems=1, maxItems=MAX_MESSAGES)),
    ] = None
    add_special_tokens: Annotated[bool | None, _doc("With prompt only (on)")] = None
    tools: Annotated[
        list[dict[str, Any]] | None,
        _as("With messages only", _list(TOOL, maxItems=MAX_TOOLS)),
    ] = None
    add_generation_prompt: Annotated[bool | None, _doc("With messages only (on)")] = None
    continue_final_message: Annotated[bool | None, _doc("With messages only")] = None
    chat_template: Annotated[str | None, _doc("With messages only")] = None
    chat_template_kwargs: Annotated[dict[str, Any] | None, _doc("With messages only")] = None
    return_token_strs: Annotated[bool | None, _doc("Give the tokens' spellings too")] = None


class DetokenizeRequest(Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /detokenize"""

    model: str | None = None
    tokens: Annotated[list[int], _ids("Token ids", null=False)]
    skip_special_tokens: Annotated[bool | None, _doc("Leave special tokens out of the text (off)")] = None


_NOTHING = Refused((), "it is not supported")

# Whatever is not neutral is refused with the reason.
REFUSED: Mapping[str, Refused] = {
    **{
        f"guided_{name}": Refused((), f"it is replaced by structured_outputs.{name}")
        for name in ("json", "regex", "choice", "grammar", "whitespace_pattern")
    },
    "use_beam_search": Refused((False,), "beam search is not supported"),
    "length_penalty": Refused((1,), "it belongs to beam search, which is not supported"),
    "spaces_between_special_tokens": Refused((True,), "only true is supported"),
    "suffix": Refused(("",), "filling in before a suffix is not supported"),
    "add_special_tokens": Refused((False,), "only false is supported: chat templates write the special tokens"),
    "echo": Refused((False,), "only completions echo their prompt"),
    "functions": Refused(([],), "it is replaced by tools"),
    "function_call": Refused(("auto", "none"), "it is replaced by tool_choice"),
    "modalities": Refused((["text"],), 'only ["text"] is supported'),
    "audio": _NOTHING,
    "prompt": _NOTHING,
    "background": Refused((False,), "only false is supported: an answer ends with its request"),
    "conversation": Refused((), "conversations are not kept as such: previous_response_id goes on from a response"),
}
# Accepted and without effect on the answer: they name whom a request is for.
RECORDED = ("user", "safety_identifier")
