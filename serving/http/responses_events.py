"""A response's output as it grows: its items, and the events that tell of them, in the order that OpenAI's clients
follow. An item is added, its parts are added, grow and are done, then it is done itself."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from jaxinfer.text.answers import PUT_IN, CallArguments, CallName, Content, Event, OutputParserNames, Reasoning
from serving.http.answers import new_call_id
from serving.http.reply import sse, sse_in_parts
from serving.http.responses_tools import FunctionName

_KINDS = {Content: "message", Reasoning: "reasoning", CallArguments: "function_call"}
PREFIXES: Mapping[str, str] = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}  # of items' ids


def new_item_id(kind: str) -> str:
    """kind: the item's type."""
    return PREFIXES.get(kind, "item_") + secrets.token_hex(12)


async def event_lines(events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
    """Server-sent events; other tasks run between the parts of long ones."""
    short: list[bytes] = []
    for event in events:
        head = b"event: " + event["type"].encode() + b"\n"
        if not event["type"].endswith((".done", ".completed", ".incomplete", ".failed")):
            short.append(head + sse(event))  # a delta: its length is bounded
            continue
        yield b"".join([*short, head])
        short = []
        async for part in sse_in_parts(event):
            yield part
    if short:
        yield b"".join(short)


class OutputItems:
    """The output's items as they grow, and the events that say so. Events and items are told apart by nothing: a whole
    answer is what the events add up to."""

    def __init__(self, form: OutputParserNames, names: Mapping[str, FunctionName]) -> None:
        """names: functions whose callers know them by another name than the model does."""
        self._form, self._names = form, names
        self.output: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._number = 0
        self._texts: list[str] = []  # what is new of the open item

    def emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "sequence_number": self._number, **fields})
        self._number += 1

    def take(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events

    @property
    def _open(self) -> dict[str, Any] | None:
        last = self.output[-1] if self.output else None
        return last if last is not None and last["status"] == "in_progress" else None

    def add(self, event: Event, logprobs: list[Any]) -> None:
        """Takes one event of the answer; `logprobs` are those of its own tokens."""
        if event.at == PUT_IN and (self._open is None or self._open["type"] != _KINDS.get(type(event))):
            return  # it stands between two texts of one item
        if isinstance(event, Content):
            self._text("message", "response.output_text.delta", event.text, logprobs)
        elif isinstance(event, Reasoning):
            self._text("reasoning", "response.reasoning_text.delta", event.text, None)
        elif isinstance(event, CallName):
            self.close("completed")
            self._begin("function_call", {"call_id": new_call_id(self._form), **self._called(event.name)})
        elif isinstance(event, CallArguments):
            item = self.output[-1]
            self._texts.append(event.text)
            self.emit("response.function_call_arguments.delta", **self._where(item), delta=event.text)

    def _called(self, shown: str) -> dict[str, Any]:
        name = self._names.get(shown)
        called = {"name": shown} if name is None else {"name": name.name, "namespace": name.namespace}
        return {**called, "arguments": ""}

    def begin_if_empty(self) -> None:
        """An answer without anything is a message without text: sent back, it keeps the user's turns apart."""
        if not self.output:
            self._begin_text("message")

    def _begin_text(self, kind: str) -> dict[str, Any]:
        item = self._begin(kind, {"role": "assistant", "content": []} if kind == "message" else _no_reasoning())
        part = _text_part("") if kind == "message" else {"type": "reasoning_text", "text": ""}
        item["content"].append(part)
        empty = {**part, **({"logprobs": []} if "logprobs" in part else {})}
        self.emit("response.content_part.added", **self._where(item), content_index=0, part=empty)
        return item

    def _text(self, kind: str, name: str, text: str, logprobs: list[Any] | None) -> None:
        item = self._open
        if item is None or item["type"] != kind:
            self.close("completed")
            item = self._begin_text(kind)
        self._texts.append(text)
        more: dict[str, Any] = {}
        if logprobs is not None:
            item["content"][0]["logprobs"] += logprobs
            more["logprobs"] = logprobs
        self.emit(name, **self._where(item), content_index=0, delta=text, **more)

    def _begin(self, kind: str, fields: dict[str, Any]) -> dict[str, Any]:
        item = {"id": new_item_id(kind), "type": kind, "status": "in_progress", **fields}
        self.output.append(item)
        added = {**item, "content": []} if "content" in item else dict(item)
        self.emit("response.output_item.added", output_index=len(self.output) - 1, item=added)
        return item

    def _where(self, item: dict[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.output) - 1}

    def settle(self) -> None:
        """Writes the text so far into the open item. Not with each delta: that would copy all of it each time."""
        item = self._open
        if item is None:
            return
        place, name = (item, "arguments") if item["type"] == "function_call" else (item["content"][0], "text")
        place[name] = "".join([place[name], *self._texts])
        self._texts = []

    def close(self, status: str) -> None:
        """Ends the open item, if there is one."""
        item = self._open
        if item is None:
            return
        self.settle()
        item["status"] = status
        where = self._where(item)
        if item["type"] == "function_call":
            self.emit("response.function_call_arguments.done", **where, name=item["name"], arguments=item["arguments"])
        else:
            part = item["content"][0]
            kind, more = (
                ("output_text", {"logprobs": part["logprobs"]}) if "logprobs" in part else ("reasoning_text", {})
            )
            self.emit(f"response.{kind}.done", **where, content_index=0, text=part["text"], **more)
            self.emit("response.content_part.done", **where, content_index=0, part=dict(part))
        self.emit("response.output_item.done", output_index=where["output_index"], item=dict(item))


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _no_reasoning() -> dict[str, Any]:
    """Nothing is encrypted: who keeps no responses here has the text itself to send back."""
    return {"summary": [], "content": [], "encrypted_content": None}
