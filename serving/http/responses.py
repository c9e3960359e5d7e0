"""POST /v1/responses: the answer, whole or as the events of a growing response."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

from jaxinfer.outputs import PROMPT
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text.answers import CallName, Content, OutputParserNames
from serving.http.chat import new_answer
from serving.http.errors import ApiError
from serving.http.generation import Generation
from serving.http.logprobs import Spelling, chat_logprobs
from serving.http.reply import Reply, sse
from serving.http.response_turn import ResponseTurn
from serving.http.responses_events import OutputItems, event_lines
from serving.http.responses_models import ResponsesRequest, TextOptions
from serving.http.responses_tools import as_sent, called
from serving.pace import Pace
from serving.request import ModelContext

# What OpenAI's clients know of the ends of an answer that broke off.
_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


class ResponsesReply(Reply):
    def __init__(
        self,
        request: ResponsesRequest,
        generation: Generation,
        context: ModelContext,
        form: OutputParserNames,
        turn: ResponseTurn,
    ) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request, self._turn = request, turn
        self._keep = request.store is not False and turn.can_keep
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
        self._items = OutputItems(form, called(request.tools))
        self._error: ApiError | None = None

    async def result(self) -> dict[str, Any]:
        async for _ in self._grow():
            self._items.events = []
        return await self._kept(self._response(self._end()))

    async def pieces(self) -> AsyncIterator[bytes]:
        items = self._items
        for kind in ("response.created", "response.in_progress"):  # sent with the first news: an error may come instead
            items.emit(kind, response=self._response("in_progress"))
        async for _ in self._grow():
            async for data in event_lines(items.take()):
                yield data
        status = self._end()
        items.emit(f"response.{status}", response=await self._kept(self._response(status)))
        async for data in event_lines(items.take()):
            yield data

    async def _kept(self, response: dict[str, Any]) -> dict[str, Any]:
        """Before the client knows its end: it may go on from it at once."""
        if self._keep and not await self._turn.keep(response):
            response["store"] = False  # larger than all may be that is kept
        return response

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
        usage = self.generation.usage.responses(self._answer.reasoning_tokens) if ended else None
        return {
            "id": "resp_" + self.generation.streams[0].prepared.request_id,
            "object": "response",
            "created_at": self.created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None if error is None else _told(error),
            "incomplete_details": {"reason": self._cut_by} if status == "incomplete" else None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "model": self.model,
            "output": [dict(item) for item in self._items.output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id or None,
            "reasoning": {"effort": request.reasoning and request.reasoning.effort, "summary": None},
            "store": self._keep,
            "temperature": params.temperature,
            "text": _text_options(request),
            "tool_choice": request.tool_choice or "auto",
            "tools": as_sent(request.tools),
            "top_p": params.top_p,
            "top_logprobs": request.top_logprobs or 0,
            "truncation": request.truncation or "disabled",
            "usage": usage,
            "user": request.user,
            "metadata": request.metadata or {},
        }

    @property
    def _cut_by(self) -> str:
        return "max_output_tokens" if self._answer.finish_reason == "length" else "aborted"


def _told(error: ApiError) -> dict[str, Any]:
    return {"code": _CODES.get(error.status, "server_error"), "message": error.message}


def _text_options(request: ResponsesRequest) -> dict[str, Any]:
    options = request.text or TextOptions()
    verbosity = {} if options.verbosity is None else {"verbosity": options.verbosity}
    return {"format": options.format or {"type": "text"}, **verbosity}
