"""The Responses API's request, made into what the other endpoints take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import OutputParserNames
from jaxinfer.text.conversation import TEXT_PARTS, as_arguments, joined, of_another_modality
from serving.http import chat_input, convert, ignored, structured
from serving.http.chat import of_chat, offered_tools
from serving.http.effort import template_reads, with_effort
from serving.http.response_turn import NO_STORE, ResponseTurn
from serving.http.responses_models import (
    MAX_METADATA,
    MAX_METADATA_KEY,
    MAX_METADATA_VALUE,
    VERBOSITIES,
    ResponsesRequest,
    ResponseTokensRequest,
)
from serving.http.responses_tools import FunctionName
from serving.http.truncation import shortened
from serving.request import MAX_MESSAGES, ChatPrompt, GenerationRequest, ModelContext, check_count

_NO_SUCH_OUTPUT = "this server has no such output"
LOGPROBS = "message.output_text.logprobs"
# What OpenAI's clients may ask for besides. Reasoning is never encrypted here, so that is null; the rest belongs to
# tools that this server does not run.
_NOTHING_TO_INCLUDE: Mapping[str, str] = {
    "reasoning.encrypted_content": "",
    **dict.fromkeys(
        (
            "code_interpreter_call.outputs",
            "computer_call_output.output.image_url",
            "file_search_call.results",
            "message.input_image.image_url",
            "web_search_call.action.sources",
            "web_search_call.results",
        ),
        _NO_SUCH_OUTPUT,
    ),
}

NAMES = {
    "max_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "prompt": "input",
    "messages": "input",
    "template_variables": "chat_template_kwargs",
}
_REASONING_PARTS = {"reasoning_text": "text", "text": "text"}
_SUMMARY_PARTS = {"summary_text": "text"}
_ITEM_KEYS: Mapping[str, tuple[str, ...]] = {
    "message": ("type", "role", "content", "id", "status", "phase"),
    "function_call": ("type", "call_id", "name", "namespace", "arguments", "id", "status"),
    "function_call_output": ("type", "call_id", "output", "id", "status"),
    "custom_tool_call": ("type", "call_id", "name", "namespace", "input", "id", "status"),
    "custom_tool_call_output": ("type", "call_id", "output", "id", "status"),
    "reasoning": ("type", "content", "summary", "id", "status", "encrypted_content"),
}


def to_requests(
    request: ResponsesRequest, context: ModelContext, form: OutputParserNames, turn: ResponseTurn
) -> list[GenerationRequest]:
    """Raises InvalidRequest, or ApiError for a response that is not kept."""
    given = convert.sampling(request)
    _check_metadata(request.metadata or {})
    if request.max_output_tokens is not None:
        given["max_tokens"] = request.max_output_tokens
    _check_include(request, given)
    _check_truncation(request)
    if request.store and not turn.can_keep:
        ignored.without_effect("store", True, NO_STORE)
    choice = structured.tool_choice(request)
    form = structured.writing_calls(form, choice)
    prompt = _prompt(request, context, form, turn)
    calls = structured.tool_rules(request, choice, prompt.tools)
    if request.truncation == "auto" and "truncate_prompt_tokens" not in given:
        prompt = shortened(prompt, context, given.get("max_tokens"))
    return [of_chat(request, prompt, given, context, form, calls)]


def to_prompt(
    request: ResponseTokensRequest, context: ModelContext, form: OutputParserNames, turn: ResponseTurn
) -> ChatPrompt:
    """What a request with these fields would ask. Raises InvalidRequest, or ApiError where a response is not kept."""
    _check_truncation(request)
    prompt = _prompt(request, context, structured.writing_calls(form, structured.tool_choice(request)), turn)
    return shortened(prompt, context, None) if request.truncation == "auto" else prompt


def _prompt(
    request: ResponsesRequest | ResponseTokensRequest,
    context: ModelContext,
    form: OutputParserNames,
    turn: ResponseTurn,
) -> ChatPrompt:
    offered = offered_tools(request, form)
    effort = None if request.reasoning is None else request.reasoning.effort
    variables = with_effort(request.chat_template_kwargs, "reasoning.effort", effort, context, form)
    if request.text is not None and request.text.verbosity is not None:
        variables = _with_verbosity(variables, request.text.verbosity, context)
    return ChatPrompt(_messages(request, turn), offered, variables=variables)


def _check_truncation(request: ResponsesRequest | ResponseTokensRequest) -> None:
    if request.truncation not in (None, "auto", "disabled"):
        raise InvalidRequest("truncation", request.truncation, "it must be auto or disabled")


def _check_include(request: ResponsesRequest, given: dict[str, Any]) -> None:
    wanted = request.include or ()
    for i, name in enumerate(wanted):
        why = "" if name == LOGPROBS else _NOTHING_TO_INCLUDE.get(name, _NO_SUCH_OUTPUT)
        if why:
            ignored.without_effect(f"include[{i}]", name, why)
    if LOGPROBS in wanted:
        given["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise InvalidRequest("top_logprobs", request.top_logprobs, f"it needs include with {LOGPROBS}")


def _with_verbosity(variables: Mapping[str, Any], verbosity: str, context: ModelContext) -> dict[str, Any]:
    if verbosity not in VERBOSITIES:
        raise InvalidRequest("text.verbosity", verbosity, f"it must be {', '.join(VERBOSITIES[:-1])} or high")
    if not template_reads("verbosity", context.tokenizer):
        ignored.without_effect("text.verbosity", verbosity, "the model's chat template reads no verbosity")
        return dict(variables)
    if variables.get("verbosity", verbosity) != verbosity:
        other = f"chat_template_kwargs has the verbosity {variables['verbosity']!r}; give one of them"
        raise InvalidRequest("text.verbosity", verbosity, other)
    return {**variables, "verbosity": verbosity}


def _check_metadata(metadata: Mapping[str, str]) -> None:
    check_count("metadata", metadata, MAX_METADATA, "pairs")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            allowed = f"keys have at most {MAX_METADATA_KEY} characters, values {MAX_METADATA_VALUE}"
            raise InvalidRequest("metadata", f"a pair of {len(key)} and {len(value)} characters", allowed)


def _messages(request: ResponsesRequest | ResponseTokensRequest, turn: ResponseTurn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if not request.input and not isinstance(request.input, str):
        raise InvalidRequest("input", [], "it must hold at least one item")
    check_count("input", request.input if isinstance(request.input, list) else (), MAX_MESSAGES, "items")
    with ignored.collecting("report"):  # what its request had no use for was told then
        for i, item in enumerate(turn.earlier(request.previous_response_id)):
            _add_item(f"previous_response_id[{i}]", item, messages)
    for i, item in enumerate(turn.given(request.input)):
        _add_item(f"input[{i}]", item, messages)
    if not messages:
        raise InvalidRequest("input", [item.get("type") for item in turn.own], "it must hold a message")
    return messages


def _add_item(name: str, item: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    kind = "message" if chat_input.says_nothing(item.get("type")) else item["type"]
    if not isinstance(kind, str):
        raise InvalidRequest(f"{name}.type", kind, f"it must be a string: one of {', '.join(_ITEM_KEYS)}")
    if kind in TEXT_PARTS or of_another_modality(kind):
        raise InvalidRequest(f"{name}.type", kind, "it is a part of a message: only items stand here, as messages do")
    if kind not in _ITEM_KEYS:  # of tools that run elsewhere, or another server's way to keep a conversation
        ignored.without_effect(f"{name}.type", kind, f"only {', '.join(_ITEM_KEYS)} reach the model")
        return
    for key, value in item.items():
        if key not in _ITEM_KEYS[kind] and not chat_input.says_nothing(value):
            allowed = f"a {kind} may have {', '.join(_ITEM_KEYS[kind])}"
            ignored.unknown(f"{name}.{key}", value, _ITEM_KEYS[kind], allowed)
    if kind == "message":
        _add_message(name, item, messages)
    elif kind in ("function_call", "custom_tool_call"):
        _turn(messages).setdefault("tool_calls", []).append(_call(name, item))
    elif kind in ("function_call_output", "custom_tool_call_output"):
        output = chat_input.text_of(f"{name}.output", item.get("output"))
        messages.append({"role": "tool", **_call_id(name, item), "content": output})
    else:
        _add_reasoning(name, item, messages)


def _add_message(name: str, item: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    role = item.get("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise InvalidRequest(f"{name}.role", role, "it must be system, developer, user or assistant")
    content = chat_input.content_of(f"{name}.content", item.get("content"))
    if role == "assistant":
        content = joined(content)
        turn = messages[-1] if _open_turn(messages) else {"content": ""}
        if "content" not in turn:
            turn["content"] = content
            return
        if "tool_calls" in turn:  # text behind a call of the same answer
            turn["content"] = "\n".join(filter(None, (turn["content"], content)))
            return
    messages.append({"role": role, "content": content})


def _add_reasoning(name: str, item: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    """As vLLM: the summary stands for a content that is not there, and an answer that has no reasoning yet gets it.

    What is encrypted cannot be read here.
    """
    reasoning = chat_input.text_of(f"{name}.content", item.get("content"), _REASONING_PARTS)
    reasoning = reasoning or chat_input.text_of(f"{name}.summary", item.get("summary"), _SUMMARY_PARTS)
    if not reasoning:
        if item.get("encrypted_content"):
            why = "it must be null, or come with content: this server cannot read it"
            ignored.without_effect(f"{name}.encrypted_content", item["encrypted_content"], why)
        if messages and messages[-1]["role"] in ("user", "tool"):
            _turn(messages)  # an answer was here, whatever it thought: the user's turns around it stay apart
        return
    told = messages[-1].get("reasoning_content") if _open_turn(messages) else None
    if _open_turn(messages) and (told is None or messages[-1].keys() == {"role", "reasoning_content"}):
        messages[-1]["reasoning_content"] = reasoning if told is None else told + "\n" + reasoning
    else:
        messages.append({"role": "assistant", "reasoning_content": reasoning})


def _open_turn(messages: Sequence[Mapping[str, Any]]) -> bool:
    return bool(messages) and messages[-1]["role"] == "assistant"


def _turn(messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The assistant's message that a call belongs to: reasoning, text and calls of one answer are one message."""
    if not _open_turn(messages):
        messages.append({"role": "assistant"})
    return messages[-1]


def _call(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    """A tool that is no function takes a text, which its call's `input` is."""
    given = item.get("namespace")
    namespace = "" if chat_input.says_nothing(given) else _text(f"{name}.namespace", given)
    arguments = (
        {"input": _text(f"{name}.input", item.get("input"))}
        if item["type"] == "custom_tool_call"
        else item.get("arguments")
    )
    function = {
        "name": FunctionName(namespace, _text(f"{name}.name", item.get("name"))).shown,
        "arguments": as_arguments(arguments),
    }
    call_id = _call_id(name, item)
    return {"id": call_id["tool_call_id"], "type": "function", "function": function}


def _call_id(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool_call_id": _text(f"{name}.call_id", item.get("call_id"))}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(name, value, "it must be a string")
    return value
