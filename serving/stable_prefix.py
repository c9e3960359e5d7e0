"""Keeps what conversations share at their beginning, so that prompts find it in the prefix cache.

Agents put lines in front of their system message that change with every request or session: who is billed, which day it
is. All that stands behind such a line is another prefix each time, tens of thousands of tokens of tools too. With
`--stable-prefix` the lines move to the end of the conversation's last message: everything in front of that is as it was
in the request before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from serving.request import ChatPrompt, Prompt

# A header, as agents write one, or a line with a date.
DEFAULT_PATTERN = r"x-[A-Za-z0-9-]+:|.*\b\d{4}-\d{2}-\d{2}\b"
_LONGEST_LINE = 512  # characters; a longer one stays where it is
_MOST_LINES = 4
_INSTRUCTING = ("system", "developer")


class StablePrefix:
    """Moves lines at the beginning of a conversation's system message that begin with what `pattern`, a regular
    expression, matches. Raises ValueError for one that is none."""

    def __init__(self, pattern: str = DEFAULT_PATTERN) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from error

    def __call__(self, prompt: Prompt) -> Prompt:
        if not isinstance(prompt, ChatPrompt) or len(prompt.messages) < 2:
            return prompt
        first, *rest = prompt.messages
        if first.get("role") not in _INSTRUCTING or rest[-1].get("role") == "assistant":
            return prompt  # there is nothing to move, or no place behind it: an answer goes on from its own text
        lines, content = self._taken(first.get("content"))
        if not lines:
            return prompt
        kept = [{**first, "content": content}] if content else []
        rest[-1] = _with_lines(rest[-1], lines)
        return replace(prompt, messages=[*kept, *rest])

    def _taken(self, content: Any) -> tuple[list[str], Any]:
        """The changing lines, and the content without them."""
        lines: list[str] = []
        while content and len(lines) < _MOST_LINES:
            text = content if isinstance(content, str) else content[0]["text"]
            line, _, behind = text.partition("\n")
            if len(line) > _LONGEST_LINE or self._pattern.match(line) is None:
                break
            lines.append(line)
            if isinstance(content, str):
                content = behind
            else:
                content = [{**content[0], "text": behind}, *content[1:]] if behind else content[1:]
        return lines, content


def _with_lines(message: Mapping[str, Any], lines: list[str]) -> dict[str, Any]:
    content, text = message.get("content") or "", "\n".join(lines)
    if isinstance(content, str):
        return {**message, "content": f"{content}\n{text}" if content else text}
    return {**message, "content": [*content, {"type": "text", "text": text}]}
