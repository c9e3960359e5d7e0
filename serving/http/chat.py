"""POST /v1/chat/completions: the request's conversion, and the answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

from jaxinfer.constraints.calls import ToolRules
from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import TokenLogprobs
from jaxinfer.outputs import PROMPT
from jaxinfer.text.answer_reading import answer_reading
from jaxinfer.text.answers import (
    CallArguments,
    CallName,
    Content,
    Event,
    OutputParser,
    OutputParserNames,
    Reasoning,
    collect,
)
from serving.http import chat_input, convert, responses_tools, structured
from serving.http.answers import GrowingAnswer, kept_tokens, new_call_id
from serving.http.effort import with_effort
from serving.http.generation import Generation
from serving.http.logprobs import Spelling, chat_logprobs, named_tokens, prompt_logprobs
from serving.http.models import ChatRequest, Sampling
from serving.http.parts import Part
from serving.http.reply import DONE, Reply, StreamUsage, sse
from serving.http.responses_models import ResponsesRequest, ResponseTokensRequest
from serving.http.tokens import ShownTokens, Token
from serving.pace import Pace
from serving.request import ChatPrompt, GenerationRequest, ModelContext

NO_TOOL_FORMAT = (
    "this server does not know how the model writes tool calls: its chat template names none, "
    "and --tool-call-parser was not given"
)


def names(request: ChatRequest) -> dict[str, str]:
    """The servers' names of fields -> this request's."""
    tokens = "max_completion_tokens" if request.max_completion_tokens is not None else "max_tokens"
    return {
        "max_tokens": tokens,
        "logprobs": "top_logprobs",
        "prompt": "messages",
        "template": "chat_template",
        "template_variables": "chat_template_kwargs",
        **structured.names_of_parts(request),
    }


def to_requests(request: ChatRequest, context: ModelContext, form: OutputParserNames) -> list[GenerationRequest]:
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
        given["logprobs"] = -1 if request.logprob_token_ids else request.top_logprobs or 0
    if request.thinking_token_budget is not None:
        given["thinking_token_budget"] = request.thinking_token_budget
    choice = structured.tool_choice(request)
    form = structured.writing_calls(form, choice)
    offered = offered_tools(request, form)
    effort = request.reasoning_effort
    variables = with_effort(request.chat_template_kwargs, "reasoning_effort", effort, context, form)
    if request.documents is not None:
        variables["documents"] = request.documents
    calls = structured.tool_rules(request, choice, offered)
    return [of_chat(request, convert.chat_prompt(request, offered, variables), given, context, form, calls)]


def of_chat(
    request: Sampling,
    prompt: ChatPrompt,
    given: Mapping[str, Any],
    context: ModelContext,
    form: OutputParserNames,
    calls: ToolRules | None = None,
) -> GenerationRequest:
    """Its answers are parsed. given: sampling fields. calls: see GenerationRequest."""
    tools = None
    if prompt.tools is not None:
        tools = {tool["function"]["name"]: tool["function"].get("parameters") for tool in prompt.tools}
    kept = kept_tokens(form, context.tokenizer, tools=tools is not None)
    reading = partial(answer_reading, form, tools)
    return convert.generation(request, prompt, given, kept_tokens=kept, reading=reading, calls=calls)


def offered_tools(
    request: ChatRequest | ResponsesRequest | ResponseTokensRequest, form: OutputParserNames
) -> list[dict[str, Any]] | None:
    """The tools that the model gets to see: none where it must not call any. Raises InvalidRequest. An empty list of
    tools is one: clients send it with their usual tool_choice."""
    if request.tools is None and request.tool_choice not in (None, "none", "auto"):
        raise InvalidRequest("tool_choice", request.tool_choice, "it needs tools")
    flat = isinstance(request, ResponsesRequest | ResponseTokensRequest)
    tools = responses_tools.functions(request.tools) if flat else chat_input.tools(request.tools)
    if not tools or request.tool_choice == "none":
        return None
    if form.tool_calls == "none":
        raise InvalidRequest("tools", [tool["function"]["name"] for tool in tools], NO_TOOL_FORMAT)
    return tools


def new_answer(
    generation: Generation,
    context: ModelContext,
    spelling: Spelling,
    *,
    single_call: bool,
    tells_tokens: bool,
    whole: bool,
    with_reasoning: bool,
) -> GrowingAnswer:
    """tells_tokens: the client wants to know of token ids or log-probabilities. whole: see OutputParser."""
    prepared = generation.streams[0].prepared
    reading = prepared.reading
    assert reading is not None
    assert context.tokenizer is not None
    parser = OutputParser(reading.form, tools=reading.tools, begun=reading.begun, whole=whole)
    shown = None
    if tells_tokens or parser.reasons:  # reasoning's tokens are counted
        shown = ShownTokens(spelling.open_after, spelling.open_at_end(prepared.token_ids))
    return GrowingAnswer(
        parser,
        context.tokenizer,
        reading.form.marks(tools=reading.tools is not None),
        shown,
        tells_tokens=tells_tokens,
        single_call=single_call,
        with_reasoning=with_reasoning,
    )


class ChatReply(Reply):
    def __init__(
        self, request: ChatRequest, generation: Generation, context: ModelContext, form: OutputParserNames
    ) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._form = form
        self._spelling = Spelling(context.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._pace = Pace()
        self._begun_calls = [0] * (request.n or 1)
        self._tells_tokens = bool(request.logprobs or request.return_token_ids)
        self._answers = [
            new_answer(
                generation,
                context,
                self._spelling,
                single_call=request.parallel_tool_calls is False,
                tells_tokens=self._tells_tokens,
                whole=not request.stream,
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
        parts: list[list[Part]] = [[] for _ in self._answers]
        entries: list[TokenLogprobs] = []
        async for _, deltas in self.generation.deltas():
            for delta in deltas:
                if delta.index == PROMPT:
                    entries += delta.logprobs
                    continue
                for more, work in self._answers[delta.index].add(delta):
                    parts[delta.index] += more
                    await self._pace.spend(work)
        result: dict[str, Any] = {
            **self._head,
            "choices": [await self._choice(i, answer, parts[i]) for i, answer in enumerate(self._answers)],
            "usage": self._usage(),
        }
        prompt = self.generation.streams[0].prepared.token_ids
        if self._request.prompt_logprobs is not None:
            wanted = self._request.prompt_logprobs
            result["prompt_logprobs"] = await prompt_logprobs(prompt, entries, self._spelling, wanted)
        if self._request.return_token_ids:
            result["prompt_token_ids"] = prompt
        return result

    async def _choice(self, index: int, answer: GrowingAnswer, parts: list[Part]) -> dict[str, Any]:
        whole = collect(part.event for part in parts if part.event is not None)
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
        tokens = [token for part in parts for token in part.tokens]
        choice = {
            "index": index,
            "message": message,
            "logprobs": await self._logprobs(tokens),
            "finish_reason": answer.finish_reason,
            "stop_reason": answer.stop_reason,
        }
        if self._request.return_token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]
        return choice

    # -- in pieces ------------------------------------------------------------------------------------------------

    async def pieces(self) -> AsyncIterator[bytes]:
        usage = StreamUsage(self._request.stream_options)
        begun = [False] * len(self._answers)
        async for _, deltas in self.generation.deltas():
            for index, delta in ((delta.index, delta) for delta in deltas if delta.index != PROMPT):
                for parts, work in self._answers[index].add(delta):
                    choices = [] if begun[index] else [self._first(index)]
                    choices += await self._deltas(index, parts)
                    begun[index] = True
                    events = [sse({**self._head, "choices": [c], **usage.so_far(self._usage)}) for c in choices]
                    if events:
                        yield b"".join(events)
                    await self._pace.spend(work)
        yield usage.last(self._head, self._usage) + DONE

    def _first(self, index: int) -> dict[str, Any]:
        choice = _delta(index, {"role": "assistant", "content": ""})
        if self._request.return_token_ids and index == 0:
            choice["prompt_token_ids"] = self.generation.streams[0].prepared.token_ids
        return choice

    async def _deltas(self, index: int, parts: list[Part]) -> list[dict[str, Any]]:
        """The deltas of a batch of parts; each has the tokens of its own part."""
        answer = self._answers[index]
        deltas = []
        for event, tokens in parts:
            if isinstance(event, CallName):
                self._begun_calls[index] += 1
            elif not self._tells_tokens and (event is None or not event.text):
                continue
            delta = _delta(index, {} if event is None else self._content(event, self._begun_calls[index] - 1))
            delta["logprobs"] = await self._logprobs(tokens)
            if self._request.return_token_ids:
                delta["token_ids"] = [token.token_id for token in tokens]
            deltas.append(delta)
        if answer.finish_reason is not None:
            if not deltas:
                deltas.append(_delta(index, {}))
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

    async def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if not self._request.logprobs:
            return None
        only = named_tokens(self._request)
        return {"content": await chat_logprobs(tokens, self._spelling, self._pace, only), "refusal": None}

    def _usage(self) -> dict[str, Any]:
        reasoning = sum(a.reasoning_tokens for a in self._answers if a.finish_reason is not None)
        return self.generation.usage.chat(reasoning)


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}


def _reasoning(text: str) -> dict[str, str]:
    """Under both names that clients look for: llama.cpp's and DeepSeek's, and vLLM's."""
    return {"reasoning_content": text, "reasoning": text}
