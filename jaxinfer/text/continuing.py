"""A conversation whose last message the model goes on with: rendered with a mark at that message's end, and cut there.

What a template writes behind the text (an end token, a line break) is left out, whatever it is, and what it would strip
from the text's end stays: it is what the model goes on from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxinfer.errors import ChatMessageError, ChatTemplateError

_MARK = "=CONTINUED-HERE{}="  # no white space at its ends, which templates strip; nothing that HTML would escape


def with_mark(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], str]:
    """The messages with the mark behind the last one's text, and the mark, which stands nowhere else in them. Raises
    ChatMessageError where it has no text."""
    last, name = dict(messages[-1]), f"messages[{len(messages) - 1}]"
    shown = repr(messages)
    mark = next(mark for i in range(len(shown)) if (mark := _MARK.format(i)) not in shown)
    content = last.get("content")
    if isinstance(content, str) and content:
        last["content"] = content + mark
    elif isinstance(content, list) and content and isinstance(content[-1].get("text"), str):
        last["content"] = [*content[:-1], {**content[-1], "text": content[-1]["text"] + mark}]
    else:
        raise ChatMessageError(f"{name}.content has no text; a message that is continued needs one")
    if last.get("tool_calls"):
        raise ChatMessageError(f"{name}.tool_calls is given; a message that is continued ends with its text")
    return [*messages[:-1], last], mark


def up_to_mark(text: str, mark: str) -> str:
    """Raises ChatTemplateError where the template does not show the last message's text as it is."""
    before, found, _ = text.rpartition(mark)
    if not found:
        raise ChatTemplateError(
            "the chat template does not show the last message's text, so that nothing can go on from it", "messages"
        )
    return before.replace(mark, "")
