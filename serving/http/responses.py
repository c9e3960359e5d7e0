"""POST /v1/responses: the answer, whole or as the events of a growing response."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

from jaxinfer.outputs import PROMPT
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text.answers import PUT_IN, CallArguments, CallName, Content, Event, OutputParserNames, Reasoning
from serving.http.answers import new_call_id
from serving.http.chat import new_answer
from serving.http.errors import ApiError
from serving.http.generation import Generation
from serving.http.logprobs import Spelling, chat_logprobs
from serving.http.models import ResponsesRequest
from serving.http.reply import Reply, sse, sse_in_parts
from serving.http.responses_input import as_sent
from serving.pace import Pace
from serving.request import ModelContext

_KINDS = {Content: "message", Reasoning: "reasoning", CallArguments: "function_call"}
_PREFIXES = {"message": "msg_", "reasoning": "rs_", "function_call": "fc_"}


async def _sse(events: list[dict[str, Any]]) -> AsyncIterator[bytes]:
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


class _Items:
    """The output's items as they grow, and the events that say so. Events and items are told apart by nothing: a whole
    answer is what the events add up to."""

    def __init__(self, form: OutputParserNames) -> None:
        self._form = form
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
            call = {"call_id": new_call_id(self._form), "name": event.name, "arguments": ""}
            self._begin("function_call", call)
        elif isinstance(event, CallArguments):
            item = self.output[-1]
            self._texts.append(event.text)
            self.emit("response.function_call_arguments.delta", **self._where(item), delta=event.text)

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
        item = {"id": _PREFIXES[kind] + secrets.token_hex(12), "type": kind, "status": "in_progress", **fields}
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
    return {"summary": [], "content": []}


class ResponsesReply(Reply):
    def __init__(
        self, request: ResponsesRequest, generation: Generation, context: ModelContext, form: OutputParserNames
    ) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._spelling = Spelling(context.tokenizer)
        self._pace = Pace()
        params: SamplingParams = generation.streams[0].prepared.params
        self._answer = new_answer(
            generation,
            context,
            self._spelling,
            single_call=request.parallel_tool_calls is False,
            tells_tokens=params.logprobs is not None,
            with_reasoning=request.include_reasoning is not False,
            whole=not request.stream,
        )
        self._items = _Items(form)
        self._error: ApiError | None = None

    async def result(self) -> dict[str, Any]:
        async for _ in self._grow():
            self._items.events = []
        return self._response(self._end())

    async def pieces(self) -> AsyncIterator[bytes]:
        items = self._items
        for kind in ("response.created", "response.in_progress"):  # sent with the first news: an error may come instead
            items.emit(kind, response=self._response("in_progress"))
        async for _ in self._grow():
            async for data in _sse(items.take()):
                yield data
        status = self._end()
        items.emit(f"response.{status}", response=self._response(status))
        async for data in _sse(items.take()):
            yield data

    def failed(self, error: ApiError) -> bytes:
        self._error = error
        items = self._items
        items.settle()
        items.emit("error", code=error.code or error.kind, message=error.message, param=error.param)
        items.emit("response.failed", response=self._response("failed"))
        return b"".join(b"event: " + event["type"].encode() + b"\n" + sse(event) for event in items.take())

    async def _grow(self) -> AsyncIterator[None]:
        """Takes the engine's news into the items, a bounded part at a time."""
        async for _, deltas in self.generation.deltas():
            for delta in (delta for delta in deltas if delta.index != PROMPT):
                for parts, work in self._answer.add(delta):
                    for event, tokens in parts:
                        if event is None or (not isinstance(event, CallName) and not event.text):
                            continue  # the tokens of tags, and of the end, are no part of an output's text
                        content = isinstance(event, Content)
                        logprobs = await chat_logprobs(tokens, self._spelling, self._pace) if content else []
                        self._items.add(event, logprobs)
                    yield
                    await self._pace.spend(work)

    def _end(self) -> str:
        """Closes the last item; how the response ended."""
        finished = self._answer.finish_reason in ("stop", "tool_calls")
        self._items.begin_if_empty()
        self._items.close("completed" if finished else "incomplete")
        return "completed" if finished else "incomplete"

    def _response(self, status: str) -> dict[str, Any]:
        request, error = self._request, self._error
        params: SamplingParams = self.generation.streams[0].prepared.params
        ended = status in ("completed", "incomplete")
        reasons = {"length": "max_output_tokens", "abort": "aborted"}
        usage = self.generation.usage.responses(self._answer.reasoning_tokens) if ended else None
        effort = None if request.reasoning is None else request.reasoning.effort
        incomplete = {"reason": reasons.get(self._answer.finish_reason or "", "aborted")}
        return {
            "id": "resp_" + self.generation.streams[0].prepared.request_id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None if error is None else {"code": error.code or error.kind, "message": error.message},
            "incomplete_details": incomplete if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "model": self.model,
            "output": [dict(item) for item in self._items.output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": None if effort is None else {"effort": effort, "summary": None},
            "store": False,
            "temperature": params.temperature,
            "text": {"format": (request.text or {}).get("format") or {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": as_sent(request.tools),
            "top_p": params.top_p,
            "top_logprobs": request.top_logprobs or 0,
            "truncation": "disabled",
            "background": False,
            "usage": usage,
            "user": request.user,
            "metadata": request.metadata or {},
        }
