"""A chat as the demo's template renders it, turn by turn: chat_template.jinja in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from demo_corpus import Document

END = "<|end|>"
ROLES = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
_THINK = "<think>\n"


class Turn(NamedTuple):
    """What stands before the model's own words or is no model's at all, the words with their end, whether they are the
    model's."""

    head: str
    body: str
    learned: bool


def chat_turns(document: Document) -> Iterator[Turn]:
    """The turns behind the beginning of sequence."""
    messages = document.messages
    if document.tools:
        own = messages[0]["content"] + "\n\n" if messages[0]["role"] == "system" else ""
        functions = "".join("\n" + signature(tool["function"]) for tool in document.tools)
        yield Turn(ROLES["system"], f"{own}Functions:{functions}{END}", learned=False)
        messages = messages[1:] if own else messages
    last = max(index for index, message in enumerate(messages) if message["role"] == "user")
    results: list[str] = []
    for index, message in enumerate(messages):
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if results:
            yield Turn(ROLES["user"], "\n".join(results) + END, learned=False)
            results = []
        yield _turn(message, document, behind=index > last)


def _turn(message: dict[str, Any], document: Document, *, behind: bool) -> Turn:
    """behind: the last question."""
    head, body = ROLES[message["role"]], message["content"]
    if message["role"] != "assistant":
        return Turn(head, body + END, learned=False)
    calls = "\n".join(_call(call["function"]) for call in message.get("tool_calls", ()))
    body = "\n".join(filter(None, (body, calls))) + END
    reasoning = message.get("reasoning_content")
    if reasoning is None or not behind:
        return Turn(head, body, learned=not document.thinking)
    return Turn(head + _THINK, f"{reasoning}\n</think>\n{body}", learned=True)


def signature(function: dict[str, Any]) -> str:
    """A function as one line."""
    parameters = function["parameters"]
    shown = [
        f"{name}{'' if name in parameters['required'] else '?'}: {_kind(schema)}"
        for name, schema in parameters["properties"].items()
    ]
    return f"{function['name']}({', '.join(shown)}): {function['description']}"


def _kind(schema: dict[str, Any]) -> str:
    return "|".join(map(json.dumps, schema["enum"])) if "enum" in schema else str(schema["type"])


def _call(function: dict[str, Any]) -> str:
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
