"""POST /v1/messages: the answer, whole or as the events of a growing message; and the number of a prompt's tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from jaxinfer.outputs import PROMPT
from jaxinfer.text.answers import PUT_IN, CallArguments, CallName, Content, Event, OutputParserNames, Reasoning
from serving.http.answers import new_call_id
from serving.http.cache_control import created_tokens
from serving.http.chat import new_answer
from serving.http.errors import ApiError, anthropic_body
from serving.http.generation import Generation
from serving.http.logprobs import Spelling
from serving.http.messages_models import MessagesRequest
from serving.http.messages_tools import single_call
from serving.http.reply import Reply, sse, sse_in_parts
from serving.http.thinking_signature import signature_of
from serving.pace import Pace
from serving.request import ModelContext

_KINDS = {Content: "text", Reasoning: "thinking", CallArguments: "tool_use"}
_PING = {"type": "ping"}


def _sse(event: dict[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\n" + sse(event)


class _Blocks:
    """The message's content as it grows, and the events that say so: a whole answer is what the events add up to.

    omitted: thinking comes without its text, which its signature keeps.
    """

    def __init__(self, form: OutputParserNames, *, omitted: bool) -> None:
        self._form, self._omitted = form, omitted
        self.content: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._open: str | None = None  # the last block's type, while it grows
        self._texts: list[str] = []  # what is new of it; not added with each delta, which would copy all each time

    def take(self) -> list[dict[str, Any]]:
        events, self.events = self.events, []
        return events

    def add(self, event: Event) -> None:
        kind = _KINDS.get(type(event))
        if event.at == PUT_IN and self._open != kind:
            return  # it stands between two texts of one block
        if isinstance(event, CallName):
            call_id = new_call_id(self._form, "toolu_")
            self._begin({"type": "tool_use", "id": call_id, "name": event.name, "input": {}})
        elif isinstance(event, CallArguments):
            self._grow(event.text, {"type": "input_json_delta", "partial_json": event.text})
        elif isinstance(event, Content):
            if self._open != kind:
                self._begin({"type": "text", "text": ""})
            self._grow(event.text, {"type": "text_delta", "text": event.text})
        else:
            if self._open != kind:
                self._begin({"type": "thinking", "thinking": "", "signature": ""})
            self._grow(event.text, None if self._omitted else {"type": "thinking_delta", "thinking": event.text})

    def _begin(self, block: dict[str, Any]) -> None:
        self.close()
        self.content.append(block)
        self._open = block["type"]
        self._emit("content_block_start", content_block=dict(block))

    def _grow(self, text: str, delta: dict[str, Any] | None) -> None:
        self._texts.append(text)
        if delta is not None:
            self._emit("content_block_delta", delta=delta)

    def close(self) -> None:
        """Ends the open block, if there is one."""
        if self._open is None:
            return
        block, text = self.content[-1], "".join(self._texts)
        if self._open == "text":
            block["text"] = text
        elif self._open == "tool_use":
            block["input"] = _input(text)
        else:
            block["thinking"] = "" if self._omitted else text
            block["signature"] = signature_of(text, omitted=self._omitted)
            self._emit("content_block_delta", delta={"type": "signature_delta", "signature": block["signature"]})
        self._open, self._texts = None, []
        self._emit("content_block_stop")

    def _emit(self, kind: str, **fields: Any) -> None:
        self.events.append({"type": kind, "index": len(self.content) - 1, **fields})


def _input(arguments: str) -> dict[str, Any]:
    """In a whole answer they are a JSON object, or the parser would not have called them a call."""
    try:
        found = msgspec.json.decode(arguments) if arguments else {}
    except msgspec.DecodeError:  # of a stream, whose client has them as the model wrote them
        return {}
    return found if isinstance(found, dict) else {}


class MessagesReply(Reply):
    def __init__(
        self, request: MessagesRequest, generation: Generation, context: ModelContext, form: OutputParserNames
    ) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._pace = Pace()
        self._started = False
        self._answer = new_answer(
            generation,
            context,
            Spelling(context.tokenizer),
            single_call=single_call(request),
            tells_tokens=False,
            with_reasoning=request.include_reasoning is not False,
            whole=not request.stream,
        )
        omitted = request.thinking is not None and request.thinking.display == "omitted"
        self._blocks = _Blocks(form, omitted=omitted)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The id also under the name that this API's clients look for."""
        return [*super().headers, (b"request-id", self.generation.streams[0].prepared.request_id.encode("ascii"))]

    async def result(self) -> dict[str, Any]:
        async for _ in self._grow():
            self._blocks.events = []
        self._blocks.close()
        return {**self._message(), "content": self._blocks.content, **self._stop(), "usage": self._usage()}

    async def pieces(self) -> AsyncIterator[bytes]:
        async for _ in self._grow():
            # Sent with the first news: an error may come instead, and the usage is known now. Where that lasts too long
            # it was a sign of life, and the usage comes at the end.
            if not self._started:
                yield self._start()
            events = self._blocks.take()
            if events:
                yield b"".join(map(_sse, events))
        self._blocks.close()
        last = {"type": "message_delta", "delta": self._stop(), "usage": self._usage()}
        for event in [*self._blocks.take(), last, {"type": "message_stop"}]:
            yield b"event: " + event["type"].encode() + b"\n"
            async for part in sse_in_parts(event):
                yield part

    def _start(self) -> bytes:
        self._started = True
        started = {**self._message(), "usage": {**self._usage(), "output_tokens": 0}}
        return _sse({"type": "message_start", "message": started}) + _sse(_PING)

    def sign_of_life(self) -> bytes:
        self.begun = True
        return _sse(_PING) if self._started else self._start()

    def failed(self, error: ApiError) -> bytes:
        request_id = self.generation.streams[0].prepared.request_id
        return _sse(anthropic_body(error, request_id))

    async def _grow(self) -> AsyncIterator[None]:
        """Takes the engine's news into the blocks, a bounded part at a time."""
        async for _, deltas in self.generation.deltas():
            for delta in (delta for delta in deltas if delta.index != PROMPT):
                for parts, work in self._answer.add(delta):
                    for event, _tokens in parts:
                        if event is not None and (isinstance(event, CallName) or event.text):
                            self._blocks.add(event)
                    yield
                    await self._pace.spend(work)

    def _message(self) -> dict[str, Any]:
        """As it begins."""
        return {
            "id": "msg_" + self.generation.streams[0].prepared.request_id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    def _stop(self) -> dict[str, Any]:
        """Why the message ended, and the client's stop string that ended it."""
        finish, stop = self._answer.finish_reason, self._answer.stop_reason
        reason, sequence = "end_turn", None
        if finish == "tool_calls":
            reason = "tool_use"
        elif finish == "stop" and isinstance(stop, str):
            reason, sequence = "stop_sequence", stop
        elif finish == "length":
            limit = self.generation.streams[0].prepared.params.max_tokens
            reason = "max_tokens" if limit == self._request.max_tokens else "model_context_window_exceeded"
        elif finish == "abort":
            reason = "refusal"  # somebody who may ended it, so what is here is not all
        return {"stop_reason": reason, "stop_sequence": sequence}

    def _usage(self) -> dict[str, Any]:
        """The prompt's tokens are told in three parts: read from the cache, pinned there by this request, and the
        others."""
        usage, stream = self.generation.usage, self.generation.streams[0]
        created = created_tokens(stream.prepared.submit, usage.cached, stream.pinned_tokens)
        found: dict[str, Any] = {
            "input_tokens": usage.prompt - usage.cached - sum(created.values()),
            "cache_creation_input_tokens": sum(created.values()),
            "cache_read_input_tokens": usage.cached,
            "cache_creation": created,
            "output_tokens": usage.completion,
        }
        if self._answer.finish_reason is not None and self._answer.reasoning_tokens:
            found["output_tokens_details"] = {"thinking_tokens": self._answer.reasoning_tokens}
        return found
