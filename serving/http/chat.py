"""POST /v1/chat/completions: the request's conversion, and the answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from jaxinfer.messages import TokenLogprobs
from jaxinfer.sampling_params import InvalidRequest
from jaxinfer.text.answers import (
    AnswerFormat,
    AnswerParser,
    CallArguments,
    CallName,
    Content,
    Event,
    Reasoning,
    collect,
)
from serving.http import chat_input, convert
from serving.http.answers import GrowingAnswer, joined, kept_tokens, new_call_id, reasoning_begun
from serving.http.generation import Generation
from serving.http.logprobs import Spelling, chat_logprobs, prompt_logprobs
from serving.http.models import ChatRequest
from serving.http.reply import DONE, Reply, StreamUsage, sse
from serving.request import ChatPrompt, GenerationRequest, ModelContext
from serving.stream import Piece

NO_TOOL_FORMAT = (
    "this server does not know how the model writes tool calls: its chat template names none, "
    "and --tool-call-parser was not given"
)


def names(request: ChatRequest) -> dict[str, str]:
    """The doors' names of fields -> this request's."""
    tokens = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    return {
        "max_tokens": tokens,
        "logprobs": "top_logprobs",
        "prompt": "messages",
        "template": "chat_template",
        "template_variables": "chat_template_kwargs",
    }


def to_requests(request: ChatRequest, context: ModelContext, form: AnswerFormat) -> list[GenerationRequest]:
    """Raises InvalidRequest."""
    given = convert.sampling(request)
    wanted = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
    if request.max_tokens is not None and request.max_tokens != wanted:
        allowed = f"its older name has the value {request.max_tokens}; give one of them"
        raise InvalidRequest("max_tokens", wanted, allowed)
    if wanted is not None:
        given["max_tokens"] = wanted
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs", request.top_logprobs, "it needs logprobs")
    if request.logprobs:
        given["logprobs"] = request.top_logprobs or 0
    tools = chat_input.tools(request.tools)
    offered = offered_tools(tools, request.tool_choice, form)
    variables = dict(request.chat_template_kwargs or {})
    if request.documents is not None:
        variables["documents"] = request.documents
    prompt = ChatPrompt(
        chat_input.messages(request.messages),
        offered,
        request.add_generation_prompt is not False,
        request.chat_template,
        variables,
    )
    kept = kept_tokens(form, context.tokenizer, tools=offered is not None)
    return [convert.generation(request, prompt, given, kept_tokens=kept)]


def offered_tools(tools: list[dict[str, Any]], choice: Any, form: AnswerFormat) -> list[dict[str, Any]] | None:
    """The tools that the model gets to see: none where it must not call any. Raises InvalidRequest."""
    if not tools:
        if choice not in (None, "none"):
            raise InvalidRequest("tool_choice", choice, "it needs tools")
        return None
    if choice == "none":
        return None
    if form.tool_calls == "none":
        raise InvalidRequest("tools", [tool["function"]["name"] for tool in tools], NO_TOOL_FORMAT)
    return tools


def new_answer(
    form: AnswerFormat,
    generation: Generation,
    context: ModelContext,
    *,
    tools: list[dict[str, Any]] | None,
    single_call: bool,
    with_reasoning: bool = True,
) -> GrowingAnswer:
    assert context.tokenizer is not None
    begun = reasoning_begun(form, context.tokenizer, generation.streams[0].prepared.token_ids)
    offered = None if tools is None else chat_input.tool_names(tools)
    parser = AnswerParser(form, tools=offered, begun=begun)
    return GrowingAnswer(parser, single_call=single_call, with_reasoning=with_reasoning)


class ChatReply(Reply):
    def __init__(self, request: ChatRequest, generation: Generation, context: ModelContext, form: AnswerFormat) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._form = form
        self._tokenizer = context.tokenizer
        self._spelling = Spelling(context.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        tools = offered_tools(chat_input.tools(request.tools), request.tool_choice, form)
        self._answers = [
            new_answer(
                form,
                generation,
                context,
                tools=tools,
                single_call=request.parallel_tool_calls is False,
                with_reasoning=request.include_reasoning is not False,
            )
            for _ in range(request.n or 1)
        ]
        self._head = {
            "id": "chatcmpl-" + generation.streams[0].prepared.request_id,
            "object": "chat.completion.chunk" if self.stream else "chat.completion",
            "created": self.created,
            "model": self.model,
        }

    # -- whole ----------------------------------------------------------------------------------------------------

    async def result(self) -> dict[str, Any]:
        events: list[list[Event]] = [[] for _ in self._answers]
        entries: list[TokenLogprobs] = []
        async for _, news in self.generation.news():
            entries += news.prompt_logprobs
            for piece in news.pieces:
                events[piece.index] += self._answers[piece.index].add(piece)
        result: dict[str, Any] = {
            **self._head,
            "choices": [self._choice(i, answer, events[i]) for i, answer in enumerate(self._answers)],
            "usage": self._usage(),
        }
        if self._request.prompt_logprobs is not None:
            result["prompt_logprobs"] = prompt_logprobs(entries, self._spelling, self._request.prompt_logprobs)
        if self._request.return_token_ids:
            result["prompt_token_ids"] = self.generation.streams[0].prepared.token_ids
        return result

    def _choice(self, index: int, answer: GrowingAnswer, events: list[Event]) -> dict[str, Any]:
        whole = collect(events)
        message: dict[str, Any] = {"role": "assistant", "content": whole.content, "refusal": None}
        if whole.calls:
            message["content"] = whole.content or None
            message["tool_calls"] = [
                {
                    "id": new_call_id(self._form),
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in whole.calls
            ]
        if whole.reasoning:
            message.update(_reasoning(whole.reasoning))
        token_ids, logprobs = answer.take()
        choice = {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(logprobs),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = token_ids
        return choice

    # -- in pieces ------------------------------------------------------------------------------------------------

    async def pieces(self) -> AsyncIterator[bytes]:
        usage = StreamUsage(self._request.stream_options)
        begun = [False] * len(self._answers)
        async for _, news in self.generation.news():
            parts = []
            for piece in news.pieces:
                deltas = self._deltas(piece)
                if not begun[piece.index]:
                    deltas.insert(0, self._first(piece.index))
                    begun[piece.index] = True
                parts += [sse({**self._head, "choices": [delta], **usage.so_far(self._usage)}) for delta in deltas]
            if parts:
                yield b"".join(parts)
        yield usage.last(self._head, self._usage) + DONE

    def _first(self, index: int) -> dict[str, Any]:
        choice = _delta(index, {"role": "assistant", "content": ""})
        if self._request.return_token_ids and index == 0:
            choice["prompt_token_ids"] = self.generation.streams[0].prepared.token_ids
        return choice

    def _deltas(self, piece: Piece) -> list[dict[str, Any]]:
        answer = self._answers[piece.index]
        calls = answer.calls
        deltas = []
        for event in joined(answer.add(piece)):
            if isinstance(event, CallName):
                calls += 1
            deltas.append(_delta(piece.index, self._content(event, calls - 1)))
        if not deltas and (piece.finish_reason is not None or (answer.logprobs and self._request.logprobs)):
            deltas.append(_delta(piece.index, {}))
        if deltas:
            token_ids, logprobs = answer.take()
            deltas[0]["logprobs"] = self._logprobs(logprobs)
            if self._request.return_token_ids:
                deltas[0]["token_ids"] = token_ids
            deltas[-1]["finish_reason"] = answer.finish_reason
            deltas[-1]["stop_reason"] = answer.stop_reason
        return deltas

    def _content(self, event: Event, call: int) -> dict[str, Any]:
        if isinstance(event, Content):
            return {"content": event.text}
        if isinstance(event, Reasoning):
            return _reasoning(event.text)
        if isinstance(event, CallArguments):
            return {"tool_calls": [{"index": call, "function": {"arguments": event.text}}]}
        function = {"name": event.name, "arguments": ""}
        return {
            "tool_calls": [{"index": call, "id": new_call_id(self._form), "type": "function", "function": function}]
        }

    # -- both -----------------------------------------------------------------------------------------------------

    def _logprobs(self, entries: list[TokenLogprobs]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        return {"content": chat_logprobs(entries, self._spelling), "refusal": None}

    def _usage(self) -> dict[str, Any]:
        reasoning = sum(a.reasoning_tokens(self._tokenizer) for a in self._answers if a.finish_reason is not None)
        return self.generation.usage.chat(reasoning)


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients look for: llama.cpp's and DeepSeek's, and vLLM's."""
    return {"reasoning_content": text, "reasoning": text}
