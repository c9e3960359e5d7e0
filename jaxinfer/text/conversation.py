"""What a template is given of a conversation: absent, empty and unreadable values settled as vLLM 0.32 settles them.

The rules are those of vLLM's renderers/chat_utils.py. Clients spell "nothing" as null, "", [] or by leaving a key out,
and send back what a model has written, so arguments may be cut or malformed. Templates are written for one spelling.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from jaxinfer.errors import ChatMessageError

# Keys under which a message's reasoning is passed, the one that templates read first.
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Kinds of text parts, and the key that has the text.
TEXT_PARTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# Kinds of parts of other modalities, as OpenAI's and vLLM's clients and transformers' templates call them.
_OTHER_PARTS = {
    "an image": ("image", "image_url", "input_image", "image_file", "image_pil", "image_embeds"),
    "audio": ("audio", "audio_url", "input_audio", "audio_embeds"),
    "a video": ("video", "video_url", "input_video", "video_embeds"),
    "a file": ("file", "input_file", "file_url"),
}

Message = dict[str, Any]

_INSTRUCTING = ("system", "developer")  # roles

_FIRST, _SECOND, _THIRD = "Tide one.", "Tide two.", "Tide three."
_ASKED = {"role": "user", "content": "?"}
_PARTS = [{"type": "text", "text": _FIRST}, {"type": "text", "text": _SECOND}]
_RAW = re.compile(r"""['"](?:type|text)['"]""")  # a list that is written as it is
_MAX_DEPTH = 200  # of arguments; deeper ones are unreadable, before the next reader finds them so
_ROLES_LIMIT = 32  # roles whose contents are remembered
_CALLS: list[dict[str, Any]] = [
    {"id": id_, "type": "function", "function": {"name": name, "arguments": {}}}
    for id_, name in (("tideone01", "look_up_tide"), ("tidetwo02", "look_up_wind"))
]


class Contents(NamedTuple):
    """How a template takes the content of a role's messages. parts: as a list of parts. strings: as a string."""

    parts: bool = False
    strings: bool = True


class TemplateUse:
    """How a template wants to be used.

    run: renders a conversation with it, and raises what the template raises. It is called with a few short ones, whose
        answers are remembered. vLLM looks for a loop over the content in the template's syntax tree; what the template
        writes says the same, and says it for every role, for macros and for indexing too.
    """

    def __init__(self, source: str, run: Callable[[Sequence[Message]], str]) -> None:
        self.knows_developer = "'developer'" in source or '"developer"' in source
        # A template that never asks for a part's text takes strings.
        self._reads_parts = "text" in source
        self._run = run
        self._contents: dict[str, Contents] = {}

    def contents(self, role: str) -> Contents:
        # vLLM: most templates take a tool's result as a string only, so all get one.
        if role == "tool" or not self._reads_parts:
            return Contents()
        if role not in self._contents:
            if len(self._contents) >= _ROLES_LIMIT:
                self._contents.clear()
            self._contents[role] = self._find(role)
        return self._contents[role]

    @cached_property
    def one_instruction(self) -> bool:
        """Whether the template knows both roles for instructions and yet shows one such message alone, as gpt-oss's.
        For templates that do not know the role developer there is one anyway."""
        if not self.knows_developer:
            return True
        heads = [{"role": "system", "content": _FIRST}, {"role": "developer", "content": _SECOND}]
        shown = self._shown([*heads, _ASKED])
        return shown is None or not (_FIRST in shown and _SECOND in shown)

    @cached_property
    def instruction_within(self) -> bool:
        """Whether the template shows a system message that stands behind a turn of the user's, in its place."""
        system, asked = {"role": "system", "content": _FIRST}, {"role": "user", "content": _SECOND}
        shown = self._shown([system, asked, {**system, "content": _THIRD}]) or ""
        places = [shown.find(text) for text in (_FIRST, _SECOND, _THIRD)]
        return places[0] >= 0 and places == sorted(places)

    @cached_property
    def one_call(self) -> bool:
        """Whether the template shows the first call of a message and silently leaves out the others."""
        shown = self._shown([_ASKED, {"role": "assistant", "content": "", "tool_calls": _CALLS}])
        first, second = (call["function"]["name"] for call in _CALLS)
        return shown is not None and first in shown and second not in shown

    @cached_property
    def ids_name_calls(self) -> bool:
        """Whether the template shows a call by its id alone, which has to name what is called, as Kimi K2's."""
        call = _CALLS[0]
        shown = self._shown([_ASKED, {"role": "assistant", "content": "", "tool_calls": [call]}]) or ""
        return call["id"] in shown and call["function"]["name"] not in shown

    @cached_property
    def text_or_reasoning(self) -> bool:
        """Whether the template takes text beside a call, and reasoning, but not both."""
        called = {"role": "assistant", "content": _FIRST, "tool_calls": _CALLS[:1]}
        reasoned = {**called, **dict.fromkeys(_REASONING, _SECOND)}
        return self._shown([_ASKED, reasoned]) is None and self._shown([_ASKED, called]) is not None

    def _shown(self, messages: Sequence[Message]) -> str | None:
        """What the template writes; None where it refuses the messages."""
        try:
            return self._run(messages)
        except Exception:  # a template is a program: whatever it raises, it does not take this
            return None

    def _find(self, role: str) -> Contents:
        whole, parts = self._written(role, _FIRST), self._written(role, _PARTS)
        taken = parts is not None and _FIRST in parts and _SECOND in parts
        raw = set(_RAW.findall(parts or "")) - set(_RAW.findall(whole or ""))
        return Contents(parts=taken and not raw, strings=whole is None or _FIRST in whole)

    def _written(self, role: str, content: Any) -> str | None:
        """What the template writes with this content; None where it refuses it."""
        message = {"role": role, "content": content}
        # The question beside it is of the same kind: a template that takes parts only takes no others.
        asked = {"role": "user", "content": _PARTS[:1] if isinstance(content, list) else "?"}
        around = {"user": [[message]], "assistant": [[asked, message]]}
        found = (self._shown(messages) for messages in around.get(role, [[message, asked], [asked, message]]))
        return next((shown for shown in found if shown is not None), None)


def check_message(name: str, message: Message) -> Message:
    """The message without keys that say nothing, its content a string or a list of {"type": "text", "text": str}.

    Raises:
        ChatMessageError: names the field.
    """
    # Some APIs send null for absent fields; templates would render it as "None".
    found = {key: value for key, value in message.items() if value is not None and value != {}}
    role = found.get("role")
    if not isinstance(role, str) or not role:
        raise ChatMessageError(f"{name}.role must be a non-empty string, got {role!r}")
    if "content" in found:
        found["content"] = _check_content(f"{name}.content", found["content"])
    for key in ("tool_calls", "name", *_REASONING):
        if key in found and not found[key] and (key not in _REASONING or found[key] != ""):
            del found[key]
    if "tool_calls" in found:
        found["tool_calls"] = _check_calls(f"{name}.tool_calls", found["tool_calls"])
    reasoning = next((found[key] for key in _REASONING if key in found), None)
    if reasoning is not None:
        found = {"thinking": reasoning, "reasoning": reasoning, **found, "reasoning_content": reasoning}
    return found


def _check_content(name: str, content: Any) -> str | list[Any]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise ChatMessageError(f"{name} must be a string or a list of text parts, not {type(content).__name__}")
    parts = (_check_part(f"{name}[{position}]", part) for position, part in enumerate(content))
    return [part for part in parts if part is not None]


def _check_part(name: str, part: Any) -> dict[str, Any] | None:
    """The part as templates know it; None where it has no text."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise ChatMessageError(f'{name} must be an object like {{"type": "text", "text": ...}}, got {part!r}')
    kind = part.get("type")
    key = TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise ChatMessageError(
            f'{name}.type must be "text", got {kind!r}: {of_another_modality(kind)}only text is supported'
        )
    text = part.get(key)
    if text is None and key in part:
        return None
    if not isinstance(text, str):
        raise ChatMessageError(f"{name}.{key} must be a string, got {text!r}")
    return {**{other: value for other, value in part.items() if other != key}, "type": "text", "text": text}


def of_another_modality(kind: object) -> str:
    """What a part of this type would be, to begin the reason of its refusal with; "" for a type that nobody knows."""
    what = next((what for what, kinds in _OTHER_PARTS.items() if kind in kinds), None)
    return "" if what is None else f"it is {what}, and the language model alone is served (--language-model-only); "


def _check_calls(name: str, calls: Any) -> list[Any]:
    if not isinstance(calls, list | tuple):
        raise ChatMessageError(f"{name} must be a list of function calls, not {type(calls).__name__}")
    result: list[Any] = []
    for position, call in enumerate(calls):
        if not isinstance(call, dict):
            raise ChatMessageError(f"{name}[{position}] must be an object, got {call!r}")
        function = call.get("function")
        if isinstance(function, dict):
            call = {**call, "function": {**function, "arguments": as_arguments(function.get("arguments"))}}
        result.append(call)
    return result


def as_arguments(given: Any) -> dict[str, Any]:
    """A call's arguments as templates take them: an object as it is, a JSON text read, anything else {}.

    A text that is no JSON stands in the history of a conversation for ever: to refuse it would end the conversation.
    """
    if isinstance(given, str) and given:
        try:
            given = json.loads(given)
            # JSON can escape half a surrogate pair, and models do; no prompt can hold one.
            return _without_surrogates(given) if isinstance(given, dict) else {}
        except (ValueError, RecursionError):  # also for a number of thousands of digits
            return {}
    return dict(given) if isinstance(given, Mapping) else {}


def _without_surrogates(value: Any, depth: int = 0) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if depth > _MAX_DEPTH:
        raise RecursionError("the arguments are nested too deeply")
    if isinstance(value, Mapping):
        return {_without_surrogates(key): _without_surrogates(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item, depth + 1) for item in value]
    return value


def for_template(messages: Sequence[Message], use: TemplateUse) -> list[Message]:
    """Checked messages as this template takes them."""
    if any(message["role"] == "developer" for message in messages):
        if not use.knows_developer:
            messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
        messages = _one_instruction(messages, use)
    elif use.knows_developer and any(message["role"] == "system" for message in messages[1:]):
        messages = _one_instruction(messages, use)
    if _has_instruction_within(messages) and not use.instruction_within:
        messages = _without_instruction_within(messages)
    if any(len(message.get("tool_calls", ())) > 1 for message in messages) and use.one_call:
        messages = _one_call_each(messages)
    if any("tool_calls" in message for message in messages) and use.ids_name_calls:
        messages = _with_naming_ids(messages)
    messages = [_without_text_beside_reasoning(message, use) for message in messages]
    return [{**message, "content": _as_taken(message, use)} for message in messages]


def _has_instruction_within(messages: Sequence[Message]) -> bool:
    begun = False
    for message in messages:
        if begun and message["role"] == "system":
            return True
        begun = begun or message["role"] != "system"
    return False


def _without_instruction_within(messages: Sequence[Message]) -> list[Message]:
    """Later system messages as the user's, in their places: where that leaves two of the user's turns beside each
    other, they are one."""
    result: list[Message] = []
    begun = joins = False  # joins: the last turn is the user's, and some of it was a system message
    for message in messages:
        within = begun and message["role"] == "system"
        begun = begun or message["role"] != "system"
        asks = within or message["role"] == "user"
        if asks and result and result[-1]["role"] == "user" and (within or joins):
            content = [*_as_parts(result[-1].get("content")), *_as_parts(message.get("content"))]
            result[-1] = {**result[-1], "content": content}
        else:
            result.append({**message, "role": "user"} if within else message)
        joins = asks and (within or joins)
    return result


def _as_parts(content: str | list[Any] | None) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _without_text_beside_reasoning(message: Message, use: TemplateUse) -> Message:
    """What a model says before it calls joins its reasoning where the template has no place for both."""
    text = joined(message.get("content")) if "tool_calls" in message else ""
    reasoning = message.get("reasoning_content")
    if not text or not reasoning or not isinstance(reasoning, str) or not use.text_or_reasoning:
        return message
    return {**message, **dict.fromkeys(_REASONING, f"{reasoning}\n\n{text}"), "content": ""}


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """Every call in a message of its own with its results behind it, as if the model had called one after the other."""
    result: list[Message] = []
    at = 0
    while at < len(messages):
        message, at = messages[at], at + 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            result.append(message)
            continue
        end = next((i for i in range(at, len(messages)) if messages[i]["role"] != "tool"), len(messages))
        results, at = list(messages[at:end]), end
        for i, call in enumerate(calls):
            first = message if i == 0 else {"role": message["role"]}
            result.append({**first, "tool_calls": [call]})
            own = _results_of(call, results) if i < len(calls) - 1 else results
            result += own
            results = [found for found in results if not any(found is taken for taken in own)]
    return result


def _with_naming_ids(messages: Sequence[Message]) -> list[Message]:
    """Every call's id is "functions.NAME:N" as Kimi K2 writes it, N counting the conversation's calls, and so are the
    ids that results name. A result without one is of the first call that has none yet."""
    result: list[Message] = []
    new: dict[Any, str] = {}
    count = 0
    open_calls: list[str] = []
    for message in messages:
        if message["role"] == "tool":
            given = message.get("tool_call_id")
            named = new.get(given) if given is not None else next(iter(open_calls), None)
            if named in open_calls:
                open_calls.remove(named)
            result.append(message if named is None else {**message, "tool_call_id": named})
            continue
        calls = []
        for call in message.get("tool_calls", ()):
            function = call.get("function")
            name = function.get("name") if isinstance(function, dict) else None
            open_calls.append(f"functions.{name}:{count}")
            count += 1
            if call.get("id") is not None:
                new[call["id"]] = open_calls[-1]
            calls.append({**call, "id": open_calls[-1]})
        result.append({**message, "tool_calls": calls} if calls else message)
    return result


def _as_taken(message: Message, use: TemplateUse) -> str | list[Any]:
    content, role = message.get("content"), message["role"]
    takes = use.contents(role)
    if role == "assistant" and not content and takes.parts and "tool_calls" not in message:
        # An answer without text. Templates of this kind may refuse "" and [], as Mistral's do from Ministral 3 on.
        return [{"type": "text", "text": ""}]
    if isinstance(content, list):
        return content if takes.parts else joined(content)
    if takes.strings or not takes.parts:
        return content or ""
    return [] if content is None else [{"type": "text", "text": content}]


def joined(content: str | list[Any] | None) -> str:
    """The text of a content: parts become lines, as in vLLM."""
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part["text"] for part in content)


def _results_of(call: Any, results: Sequence[Message]) -> list[Message]:
    """A call's results: those that name it, else the first that names none."""
    own = call.get("id") if isinstance(call, dict) else None
    named = [result for result in results if own is not None and result.get("tool_call_id") == own]
    return named or [result for result in results if result.get("tool_call_id") is None][:1]


def _one_instruction(messages: Sequence[Message], use: TemplateUse) -> list[Message]:
    """Templates that know one such message at most, and at the beginning, get the texts of all in one."""
    found = [message for message in messages if message["role"] in _INSTRUCTING]
    if not found or (len(found) == 1 and messages[0] is found[0]) or not use.one_instruction:
        return list(messages)
    texts = [text for message in found if (text := joined(message.get("content")))]
    others = [message for message in messages if message["role"] not in _INSTRUCTING]
    role = "developer" if any(message["role"] == "developer" for message in found) else "system"
    return [{"role": role, "content": "\n\n".join(texts)}, *others]
