"""The Messages API's request, made into what the other endpoints take.

Anthropic says what turns and blocks mean: turns of one role that follow each other are one, results of tools are blocks
of a user's turn, and a system message may stand between turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxinfer.constraints.params import FIELD
from jaxinfer.errors import InvalidRequest
from jaxinfer.text.answers import OutputParserNames
from jaxinfer.text.conversation import of_another_modality
from serving.cache_marks import MARK
from serving.http import convert, ignored, structured
from serving.http.cache_control import CacheControl
from serving.http.chat import of_chat
from serving.http.chat_input import says_nothing
from serving.http.effort import EFFORT, known_effort, thinking_switch
from serving.http.errors import ApiError
from serving.http.messages_models import MessagesRequest, MessageTokensRequest, Thinking
from serving.http.messages_tools import offered_tools, tool_choice, tool_rules
from serving.http.models import MAX_USER
from serving.http.thinking_signature import thinking_of
from serving.request import MAX_MESSAGES, ChatPrompt, GenerationRequest, ModelContext, check_count

NAMES = {
    "thinking_token_budget": "thinking.budget_tokens",
    "prompt": "messages",
    "template_variables": "chat_template_kwargs",
}
_ROLES = ("user", "assistant", "system")
_THINKING = ("enabled", "adaptive", "between_tools", "disabled")
_PROVIDERS = "it belongs to a tool that the model's provider ran, of which this model was not told"
_KEYS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "document": ("source", "title", "context"),
    "search_result": ("source", "title", "content"),
    "tool_reference": ("tool_name",),
    "thinking": ("thinking", "signature"),
    "redacted_thinking": ("data",),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id", "content", "is_error"),
}
_MARKS = (MARK, "citations", "caller", "toolset_name")  # beside any block, and no part of its text
_OF_ROLES: Mapping[str, tuple[str, ...]] = {
    "user": ("text", "document", "search_result", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
    "system": ("text",),
}
_OF_RESULTS = ("text", "document", "search_result", "tool_reference")
_OF_DOCUMENTS = ("text",)
_MARKED = ("text", "document", "search_result", "tool_use", "tool_result")  # blocks up to which a prompt is pinned


def names(request: MessagesRequest) -> dict[str, str]:
    """The servers' names of fields -> this request's."""
    given = "output_format" if request.output_format is not None else "output_config.format"
    parts = {} if getattr(request, FIELD) is not None else {f"{FIELD}.json": f"{given}.schema"}
    return {**NAMES, **parts, **({"stop": "stop_sequences"} if request.stop_sequences else {})}


def to_requests(request: MessagesRequest, context: ModelContext, form: OutputParserNames) -> list[GenerationRequest]:
    """Raises InvalidRequest."""
    _refuse_thread(request)
    given = convert.sampling(request)
    given["max_tokens"] = request.max_tokens
    if request.stop_sequences:
        given["stop"] = (*given.get("stop", ()), *request.stop_sequences)
    given |= _form_of(request)
    given |= _budget(request, form)
    user = None if request.metadata is None else request.metadata.user_id
    if user is not None and len(user) > MAX_USER:
        raise InvalidRequest("metadata.user_id", user, f"at most {MAX_USER} characters are allowed")
    prompt = to_prompt(request, context, form)
    if prompt.messages[-1]["role"] == "assistant" and not prompt.continue_final_message:
        allowed = "a last turn of the assistant's must be text, from which the answer goes on"
        raise InvalidRequest(f"messages[{len(request.messages) - 1}].role", "assistant", allowed)
    form = structured.writing_calls(form, tool_choice(request))
    found = of_chat(request, prompt, given, context, form, tool_rules(request, prompt.tools))
    return [replace(found, user=found.user or user or "")]


def _refuse_thread(request: MessagesRequest) -> None:
    """Raises ApiError for a conversation that the server should hold: what follows would be half a conversation. The
    details are those on which Anthropic's SDKs send the whole of it, without a thread, from then on."""
    if request.thread is None:
        return
    fault = InvalidRequest("thread", request.thread, "it must be null: send the whole conversation with each request")
    details = {"error_code": "thread_unsupported_request", "unsupported": ["thread"]}
    raise ApiError(400, str(fault), param="thread", reason=fault.allowed, details=details)


def _budget(request: MessagesRequest, form: OutputParserNames) -> dict[str, Any]:
    thinking = request.thinking
    if thinking is None or thinking.budget_tokens is None:
        return {}
    if thinking.type == "enabled" and form.reasoning != "none":
        return {"thinking_token_budget": thinking.budget_tokens}
    why = "it belongs to the type enabled, and to models whose reasoning is known"
    ignored.without_effect("thinking.budget_tokens", thinking.budget_tokens, why)
    return {}


def _form_of(request: MessagesRequest) -> dict[str, Any]:
    """`structured_outputs` as the request's own fields ask for it."""
    config = None if request.output_config is None else request.output_config.format
    if request.output_format is not None and config is not None:
        raise InvalidRequest("output_format", "given", "output_config.format replaces it; give one of them")
    wanted = request.output_format or config
    if wanted is None:
        return {}
    if getattr(request, FIELD) is not None:
        raise InvalidRequest("output_config.format", "given", f"{FIELD} says the same; give one of them")
    return {FIELD: {"json": wanted.schema}}


def to_prompt(
    request: MessagesRequest | MessageTokensRequest, context: ModelContext, form: OutputParserNames
) -> ChatPrompt:
    """Raises InvalidRequest."""
    if not request.messages:
        raise InvalidRequest("messages", [], "it must hold at least one message")
    check_count("messages", request.messages, MAX_MESSAGES, "messages")
    marks = CacheControl(honoured=isinstance(request, MessagesRequest) and context.info.max_pinned_pages > 0)
    turns = _Turns()
    if not says_nothing(request.system):
        turns.add("system", list(_blocks("system", "system", request.system, marks)))
    for i, message in enumerate(request.messages):
        _add_message(f"messages[{i}]", message, turns, marks)
    offered = offered_tools(request, form, marks)
    turns.mark_end(marks.of("", {MARK: request.cache_control}))
    messages = turns.as_chat()
    last = messages[-1]
    goes_on = last["role"] == "assistant" and bool(last["content"]) and "tool_calls" not in last
    return ChatPrompt(
        messages,
        offered,
        add_generation_prompt=not goes_on,
        variables=_variables(request, context, form),
        continue_final_message=goes_on,
        marked=marks.any,
    )


# -- turns ------------------------------------------------------------------------------------------------------------


class _Turns:
    """Messages as chat templates read them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []

    def add(self, role: str, parts: Sequence[dict[str, str]]) -> None:
        """More of the last turn where that has this role."""
        last = self.messages[-1] if self.messages else None
        if last is not None and last["role"] == role and role != "system":
            last["content"] += parts
        else:
            self.messages.append({"role": role, "content": list(parts)})

    def mark_end(self, mark: Mapping[str, float]) -> None:
        """Puts a mark behind the last block."""
        last = self.messages[-1]
        last_of = [last, *(last["content"] if isinstance(last["content"], list) else ()), *last.get("tool_calls", ())]
        last_of[-1].update(mark)

    def as_chat(self) -> list[dict[str, Any]]:
        """A single text as a string, as chat completions' clients send it: so both find the same cached prefix. With a
        mark it becomes one later."""
        for message in self.messages:
            content = message["content"]
            if not isinstance(content, str) and len(content) < 2 and MARK not in (content or ({},))[0]:
                message["content"] = content[0]["text"] if content else ""
        return self.messages

    @property
    def answer(self) -> dict[str, Any]:
        """The assistant's turn that is open, or a new one."""
        self.add("assistant", ())
        return self.messages[-1]


def _add_message(name: str, message: Mapping[str, Any], turns: _Turns, marks: CacheControl) -> None:
    role = message.get("role")
    if role not in _ROLES:
        raise InvalidRequest(f"{name}.role", role, f"it must be {', '.join(_ROLES[:-1])} or {_ROLES[-1]}")
    for key, value in message.items():
        if key not in ("role", "content") and not says_nothing(value):
            ignored.unknown(f"{name}.{key}", value, ("role", "content"), "a message has role and content")
    blocks = list(_blocks(f"{name}.content", role, message.get("content"), marks))
    if role == "assistant":
        _add_answer(blocks, turns)
        return
    results = [block for block in blocks if block["type"] == "tool_result"]
    for block in results:  # in front of what else the user says: they belong to the calls before
        mark = {MARK: block[MARK]} if MARK in block else {}
        turns.messages.append({"role": "tool", "tool_call_id": block["id"], "content": block["text"], **mark})
    texts = [block for block in blocks if block["type"] == "text"]
    if texts or not results:
        turns.add(role, texts)


def _add_answer(blocks: Sequence[dict[str, Any]], turns: _Turns) -> None:
    answer = turns.answer
    for block in blocks:
        if block["type"] == "text":
            answer["content"].append(block)
        elif block["type"] == "thinking":
            told = answer.get("reasoning_content")
            answer["reasoning_content"] = block["text"] if told is None else f"{told}\n{block['text']}"
        else:
            function = {"name": block["name"], "arguments": block["input"]}
            call = {"id": block["id"], "type": "function", "function": function}
            call |= {MARK: block[MARK]} if MARK in block else {}
            answer.setdefault("tool_calls", []).append(call)


# -- blocks -----------------------------------------------------------------------------------------------------------


def _blocks(name: str, role: str, content: Any, marks: CacheControl) -> Iterator[dict[str, Any]]:
    """The blocks of a turn, checked: {"type": "text", "text": ...}, or thinking with its text, a tool_use with id, name
    and input, a tool_result with id and text; with their marks. What says nothing to this model is reported and left
    out."""
    for at, block in _listed(name, content):
        kind = _kind(at, block, _OF_ROLES[role])
        if kind is None:
            continue
        mark: dict[str, float] = {}
        if kind in _MARKED:
            mark = marks.of(at, block)
            block = {key: value for key, value in block.items() if key != MARK}
        _report_rest(at, block, kind)
        if kind == "tool_use":
            yield _tool_use(at, block) | mark
        elif kind == "tool_result":
            text = "\n".join(_texts(f"{at}.content", block.get("content"), _OF_RESULTS))
            if block.get("is_error"):  # templates have no other word for it
                text = f"Error: {text}" if text else "Error"
            yield {"type": kind, "id": _string(f"{at}.tool_use_id", block.get("tool_use_id")), "text": text, **mark}
        elif kind == "thinking":
            text = thinking_of(
                _string(f"{at}.thinking", block.get("thinking")), _string(f"{at}.signature", block.get("signature", ""))
            )
            if text:
                yield {"type": kind, "text": text}
        else:
            yield {"type": "text", "text": _text(at, block, kind), **mark}


def _listed(name: str, content: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each block with its place. A string is one of text."""
    if isinstance(content, str) or content is None:
        yield name, {"type": "text", "text": content or ""}
        return
    if not isinstance(content, list):
        raise InvalidRequest(name, content, "it must be a string or a list of blocks")
    for i, block in enumerate(content):
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        if not isinstance(block, dict):
            raise InvalidRequest(f"{name}[{i}]", block, 'it must be an object like {"type": "text", "text": "..."}')
        yield f"{name}[{i}]", block


def _kind(name: str, block: Mapping[str, Any], allowed: Sequence[str]) -> str | None:
    """The block's type. None for one that is left out: what a provider's own tools made, and reasoning that only its
    provider can read."""
    kind = block.get("type")
    if not isinstance(kind, str):
        raise InvalidRequest(f"{name}.type", kind, "it must be a string")
    if kind == "redacted_thinking" and kind in allowed:
        ignored.passed_over(f"{name}.redacted_thinking")
        return None
    if kind in allowed:
        return kind
    if kind not in _KEYS and kind.endswith(("_tool_use", "_tool_result", "container_upload")):
        ignored.without_effect(f"{name}.{kind}", block, _PROVIDERS)
        return None
    raise InvalidRequest(f"{name}.type", kind, f"{of_another_modality(kind)}only {', '.join(allowed)} are supported")


def _report_rest(name: str, block: Mapping[str, Any], kind: str) -> None:
    for key, value in block.items():
        if key == "type" or key in _KEYS[kind] or says_nothing(value) or value is False:
            continue
        if key in _MARKS:
            ignored.passed_over(f"{name}.{key}")
        else:
            ignored.unknown(f"{name}.{key}", value, _KEYS[kind], f"a block of type {kind} may have {_KEYS[kind]}")


def _texts(name: str, content: Any, allowed: Sequence[str]) -> Iterator[str]:
    for at, block in _listed(name, content):
        kind = _kind(at, block, allowed)
        if kind is not None:
            _report_rest(at, block, kind)
            yield _text(at, block, kind)


def _text(name: str, block: Mapping[str, Any], kind: str) -> str:
    """What the model reads of a block."""
    if kind == "text":
        return _string(f"{name}.text", block.get("text"))
    if kind == "tool_reference":
        return _string(f"{name}.tool_name", block.get("tool_name"))
    heads = [_string(f"{name}.{key}", block[key]) for key in ("title", "context") if not says_nothing(block.get(key))]
    if kind == "search_result":
        heads.append(_string(f"{name}.source", block.get("source")))
        return "\n".join([*heads, *_texts(f"{name}.content", block.get("content"), _OF_DOCUMENTS)])
    source = block.get("source")
    if not isinstance(source, dict) or source.get("type") not in ("text", "content"):
        shown = source.get("type") if isinstance(source, dict) else source
        allowed = "only the sources text and content are supported: documents of other types are no text"
        raise InvalidRequest(f"{name}.source.type", shown, allowed)
    if source["type"] == "text":
        return "\n".join([*heads, _string(f"{name}.source.data", source.get("data"))])
    return "\n".join([*heads, *_texts(f"{name}.source.content", source.get("content"), _OF_DOCUMENTS)])


def _tool_use(name: str, block: Mapping[str, Any]) -> dict[str, Any]:
    arguments = block.get("input")
    if not (says_nothing(arguments) or isinstance(arguments, dict)):
        raise InvalidRequest(f"{name}.input", arguments, "it must be an object")
    return {
        "type": "tool_use",
        "id": _string(f"{name}.id", block.get("id")),
        "name": _string(f"{name}.name", block.get("name")),
        "input": arguments or {},
    }


def _string(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise InvalidRequest(name, value, "it must be a string")
    return value


# -- the template's variables -----------------------------------------------------------------------------------------


def _is_known(thinking: Thinking) -> bool:
    """Whether its type is one of those that say whether to reason. Clients send words that are newer than this server;
    they are reported, as new fields are."""
    if thinking.display not in (None, "summarized", "omitted"):
        why = "it must be summarized or omitted: thinking comes as it is"
        ignored.without_effect("thinking.display", thinking.display, why)
    if thinking.type not in _THINKING:
        why = f"it must be {', '.join(_THINKING[:-1])} or {_THINKING[-1]}"
        ignored.without_effect("thinking.type", thinking.type, why)
    return thinking.type in _THINKING


def _variables(
    request: MessagesRequest | MessageTokensRequest, context: ModelContext, form: OutputParserNames
) -> dict[str, Any]:
    """What thinking and effort mean to the model's chat template. What it does not read is reported."""
    known = dict(request.chat_template_kwargs or {})
    tokenizer = context.tokenizer
    if request.thinking is not None and _is_known(request.thinking):
        wanted = request.thinking.type != "disabled"
        switch = None if tokenizer is None else thinking_switch(tokenizer)
        if switch is not None:
            known.setdefault(switch, wanted)
        elif wanted != (form.reasoning != "none"):  # a model without a switch always thinks, or never
            why = "the model's chat template has no variable for it"
            ignored.without_effect("thinking.type", request.thinking.type, why)
    effort = None if request.output_config is None else request.output_config.effort
    if effort is not None and EFFORT not in known:
        taken = None if tokenizer is None else known_effort(tokenizer, effort, harmony=form.is_harmony)
        if taken is None:
            why = f"the model's chat template reads no {EFFORT}, or does not know this one"
            ignored.without_effect("output_config.effort", effort, why)
        else:
            known[EFFORT] = taken
    return known
