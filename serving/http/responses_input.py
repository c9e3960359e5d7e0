"""The Responses API's request, made into what the other endpoints take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import OutputParserNames
from jaxinfer.text.conversation import as_arguments, joined
from serving.http import chat_input, convert, ignored, structured
from serving.http.chat import of_chat, offered_tools
from serving.http.models import MAX_METADATA, MAX_METADATA_KEY, MAX_METADATA_VALUE, ResponsesRequest
from serving.request import MAX_MESSAGES, ChatPrompt, GenerationRequest, ModelContext, check_count

LOGPROBS = "message.output_text.logprobs"

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
    "function_call": ("type", "call_id", "name", "arguments", "id", "status"),
    "function_call_output": ("type", "call_id", "output", "id", "status"),
    "reasoning": ("type", "content", "summary", "id", "status", "encrypted_content"),
}


def to_requests(request: ResponsesRequest, context: ModelContext, form: OutputParserNames) -> list[GenerationRequest]:
    """Raises InvalidRequest."""
    given = convert.sampling(request)
    _check_metadata(request.metadata or {})
    if request.max_output_tokens is not None:
        given["max_tokens"] = request.max_output_tokens
    for i, name in enumerate(request.include or ()):
        if name != LOGPROBS:
            raise InvalidRequest(f"include[{i}]", name, f"only {LOGPROBS} is supported")
    if request.include:
        given["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs:
        raise InvalidRequest("top_logprobs", request.top_logprobs, f"it needs include with {LOGPROBS}")
    choice = structured.tool_choice(request)
    form = structured.writing_calls(form, choice)
    offered = offered_tools(request, form)
    effort = None if request.reasoning is None else request.reasoning.effort
    variables = convert.with_effort(request.chat_template_kwargs, "reasoning.effort", effort, context, form)
    prompt = ChatPrompt(_messages(request), offered, variables=variables)
    calls = structured.tool_rules(request, choice, offered)
    return [of_chat(request, prompt, given, context, form, calls)]


def _check_metadata(metadata: Mapping[str, str]) -> None:
    check_count("metadata", metadata, MAX_METADATA, "pairs")
    for key, value in metadata.items():
        if len(key) > MAX_METADATA_KEY or len(value) > MAX_METADATA_VALUE:
            allowed = f"keys have at most {MAX_METADATA_KEY} characters, values {MAX_METADATA_VALUE}"
            raise InvalidRequest("metadata", f"a pair of {len(key)} and {len(value)} characters", allowed)


def _messages(request: ResponsesRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if request.instructions:
        messages.append({"role": "system", "content": request.instructions})
    if isinstance(request.input, str):
        messages.append({"role": "user", "content": request.input})
    else:
        if not request.input:
            raise InvalidRequest("input", [], "it must hold at least one item")
        check_count("input", request.input, MAX_MESSAGES, "items")
        for i, item in enumerate(request.input):
            _add_item(f"input[{i}]", item, messages)
    return messages


def _add_item(name: str, item: Mapping[str, Any], messages: list[dict[str, Any]]) -> None:
    kind = "message" if chat_input.says_nothing(item.get("type")) else item["type"]
    if not isinstance(kind, str) or kind not in _ITEM_KEYS:
        raise InvalidRequest(f"{name}.type", kind, f"only {', '.join(_ITEM_KEYS)} are supported")
    for key, value in item.items():
        if key not in _ITEM_KEYS[kind] and not chat_input.says_nothing(value):
            allowed = f"a {kind} may have {', '.join(_ITEM_KEYS[kind])}"
            ignored.unknown(f"{name}.{key}", value, _ITEM_KEYS[kind], allowed)
    if kind == "message":
        _add_message(name, item, messages)
    elif kind == "function_call":
        _turn(messages).setdefault("tool_calls", []).append(_call(name, item))
    elif kind == "function_call_output":
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
            allowed = "it must be null, or come with content: this server cannot read it"
            raise InvalidRequest(f"{name}.encrypted_content", item["encrypted_content"], allowed)
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
    function = {
        "name": _text(f"{name}.name", item.get("name")),
        "arguments": as_arguments(item.get("arguments")),
    }
    call_id = _call_id(name, item)
    return {"id": call_id["tool_call_id"], "type": "function", "function": function}


def _call_id(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
    return {"tool_call_id": _text(f"{name}.call_id", item.get("call_id"))}


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(name, value, "it must be a string")
    return value


def as_sent(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]]:
    """The tools as a response repeats them."""
    return [
        {"strict": False, "parameters": {}, **{k: v for k, v in tool.items() if v is not None}} for tool in tools or ()
    ]
