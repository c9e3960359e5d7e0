"""The input filter over a request: every text that reaches the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from jaxinfer.errors import InvalidRequest
from jaxinfer.text import Tokenizer
from jaxinfer.text.conversation import TEXT_PARTS
from serving.access.caller import CALLER
from serving.cache_marks import MARK
from serving.filters.contract import Filter, Subject, judge, replaced
from serving.request import Prompt, TextPrompt, TokenPrompt

_LONGEST_PART = 200  # characters


def prompt_filter(
    judging: Filter | None, then: Callable[[Prompt], Prompt] | None, tokenizer: Tokenizer | None
) -> Callable[[Prompt], Prompt] | None:
    """What becomes of each prompt of a request: the input filter's verdict for its caller's tenant, and then `then`."""
    if judging is None:
        return then

    def changed(prompt: Prompt) -> Prompt:
        judged = filtered(prompt, judging, CALLER.get().tenant, tokenizer)
        return judged if then is None else then(judged)

    return changed


def filtered(prompt: Prompt, judging: Filter, tenant: str, tokenizer: Tokenizer | None) -> Prompt:
    """The prompt as the filter leaves it. Raises Refusal, or InvalidRequest where token ids hold what would be changed:
    other ids for a changed text would be another prompt than the client counted."""
    if isinstance(prompt, TextPrompt):
        return replace(prompt, text=_text(prompt.text, "prompt", judging, tenant))
    if isinstance(prompt, TokenPrompt):
        if tokenizer is None:
            raise InvalidRequest("token_ids", "token ids", "the input filter needs a tokenizer to read them")
        text = tokenizer.decode(list(prompt.token_ids), skip_special_tokens=False)
        if _text(text, "prompt", judging, tenant) != text:
            raise InvalidRequest("token_ids", "token ids", "they hold text that the input filter changes; send a text")
        return prompt
    tools = prompt.tools
    if tools is not None:
        tools = [_values(tool, f"tools[{i}]", judging, tenant) for i, tool in enumerate(tools)]
    return replace(
        prompt,
        messages=[_message(message, f"messages[{i}]", judging, tenant) for i, message in enumerate(prompt.messages)],
        tools=tools,
        variables=_values(prompt.variables, "variables", judging, tenant),
    )


def _text(text: str, part: str, judging: Filter, tenant: str) -> str:
    return replaced(text, judge(judging, text, Subject("input", part, tenant)))


def _within(part: str, key: object) -> str:
    """The name of a field's value; it is made for every value, and keys can be long."""
    return f"{part[:_LONGEST_PART]}.{str(key)[:_LONGEST_PART]}"


def _message(message: Mapping[str, Any], part: str, judging: Filter, tenant: str) -> Any:
    """As `_values`; text parts are judged as the one text that a template makes of them, too."""
    content = message.get("content")
    if not isinstance(content, list):
        return _values(message, part, judging, tenant)
    where = f"{part}.content"
    texts = [text for each in content if (text := _part_text(each)) is not None]
    changed: Any = None
    for between in ("\n", "") if len(texts) > 1 else ():
        text = between.join(texts)
        judged = _text(text, where, judging, tenant)
        if judged != text:
            changed = judged
            break
    if changed is None:
        changed = [
            {**each, "text": _text(each["text"], where, judging, tenant)}
            if _is_text(each)
            else _values(each, where, judging, tenant)
            for each in content
        ]
    rest = {key: value for key, value in message.items() if key != "content"}
    return {**_values(rest, part, judging, tenant), "content": changed}


def _part_text(part: Any) -> str | None:
    """What a template gets of a part of any kind that is taken; None for none."""
    if isinstance(part, Mapping):
        kind = part.get("type")
        part = part.get(TEXT_PARTS.get(kind, "")) if isinstance(kind, str) else None
    return part if isinstance(part, str) else None


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and part.keys() - {MARK} == {"type", "text"} and isinstance(part["text"], str)


def _values(value: Any, part: str, judging: Filter, tenant: str) -> Any:
    """The same with every string judged, names of fields too: a template may show them to the model."""
    if isinstance(value, str):
        return _text(value, part, judging, tenant)
    if isinstance(value, Mapping):
        return {
            _text(str(key), part, judging, tenant): _values(item, _within(part, key), judging, tenant)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_values(item, f"{part}[{i}]", judging, tenant) for i, item in enumerate(value)]
    return value
