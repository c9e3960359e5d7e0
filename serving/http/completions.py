"""POST /v1/completions: the answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from jaxinfer.messages import TokenLogprobs
from jaxinfer.outputs import PROMPT, Delta
from serving.http.generation import Generation
from serving.http.logprobs import CompletionLogprobs, Spelling, named_tokens, prompt_logprobs
from serving.http.models import CompletionRequest
from serving.http.reply import DONE, Reply, StreamUsage, sse, sse_in_parts
from serving.http.tokens import ShownTokens, echoed
from serving.pace import Pace
from serving.request import ModelContext

_STEPS_AT_A_TIME = 2048  # of `Pace`: of what one event is made


class _Choice:
    """One of the answers to one of the prompts; `take` gives what came since the last call.

    shown: None where nobody wants to know of tokens. logprobs: None where nobody wants those.
    """

    def __init__(self, index: int, shown: ShownTokens | None, logprobs: CompletionLogprobs | None) -> None:
        self.index = index
        self.logprobs = logprobs
        self.begun = False
        self._shown = shown
        self._base = 0  # characters of the prompt in front
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self.finish_reason: str | None = None
        self._stop_reason: int | str | None = None

    def echo(self, text: str, logprobs: dict[str, list[Any]] | None) -> None:
        """Puts the prompt in front."""
        self._text.append(text)
        self._base = len(text)
        if self.logprobs is not None and logprobs is not None:
            self.logprobs.put(logprobs)

    async def add(self, delta: Delta, pace: Pace) -> AsyncIterator[None]:
        """Takes a delta, a bounded number of tokens at a time; other tasks run in between."""
        work = 0
        if self._shown is None:
            self._text += delta.texts
        else:
            for text, token in self._shown.add(delta):
                self._text.append(text)
                if token is None:
                    continue
                self._token_ids.append(token.token_id)
                work += 8
                if self.logprobs is not None:
                    await self.logprobs.add(token, self._base + token.begin)
                    work += 0 if token.entry is None else len(token.entry.top)
                if work >= _STEPS_AT_A_TIME:
                    yield
                    await pace.spend(work)
                    work = 0
        self.finish_reason, self._stop_reason = delta.finish_reason, delta.stop_reason
        yield
        await pace.spend(work + 32)

    def take(self, *, token_ids: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": self.index,
            "text": "".join(self._text),
            "logprobs": None if self.logprobs is None else self.logprobs.take(),
            "finish_reason": self.finish_reason,
            "stop_reason": self._stop_reason,
        }
        if token_ids:
            choice["token_ids"] = self._token_ids
        self._text, self._token_ids = [], []
        return choice


class CompletionReply(Reply):
    def __init__(self, request: CompletionRequest, generation: Generation, context: ModelContext) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._tokenizer = context.tokenizer
        self._spelling = Spelling(context.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._pace = Pace()
        self._n = request.n or 1
        self._prompts: list[list[TokenLogprobs]] = [[] for _ in generation.streams]
        self._held: list[list[Delta]] = [[] for _ in generation.streams]
        self._echoes: dict[int, tuple[str, dict[str, list[Any]] | None]] = {}
        self._choices: dict[int, _Choice] = {}  # as they are needed: there can be thousands
        self._head = {
            "id": "cmpl-" + (request.request_id or generation.streams[0].prepared.request_id),
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, index: int) -> _Choice:
        found = self._choices.get(index)
        if found is None:
            found = self._choices[index] = _Choice(index, self._shown(index // self._n), self._logprobs())
        return found

    def _shown(self, prompt: int) -> ShownTokens | None:
        if self._request.logprobs is None and not self._request.return_token_ids:
            return None
        ids = self.generation.streams[prompt].prepared.token_ids
        return ShownTokens(self._spelling.open_after, self._spelling.open_at_end(ids))

    def _logprobs(self) -> CompletionLogprobs | None:
        wanted = self._request.logprobs
        return None if wanted is None else CompletionLogprobs(self._spelling, wanted, named_tokens(self._request))

    async def result(self) -> dict[str, Any]:
        async for prompt, deltas in self.generation.deltas():
            async for _ in self._take(prompt, deltas):
                pass
        choices = []
        scored: dict[int, list[Any]] = {}
        for index in range(len(self.generation.streams) * self._n):
            prompt = index // self._n
            whole = self._choice(index).take(token_ids=bool(self._request.return_token_ids))
            self._add_prompt_ids(prompt, whole)
            if self._request.prompt_logprobs is not None:
                if prompt not in scored:  # once for all answers to it
                    ids, wanted = self.generation.streams[prompt].prepared.token_ids, self._request.prompt_logprobs
                    scored[prompt] = await prompt_logprobs(ids, self._prompts[prompt], self._spelling, wanted)
                whole["prompt_logprobs"] = scored[prompt]
            choices.append(whole)
            await self._pace.spend(8)
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _add_prompt_ids(self, prompt: int, choice: dict[str, Any]) -> None:
        if self._request.return_token_ids:
            choice["prompt_token_ids"] = self.generation.streams[prompt].prepared.token_ids

    async def pieces(self) -> AsyncIterator[bytes]:
        usage = StreamUsage(self._request.stream_options)
        first = [True] * len(self.generation.streams)
        async for prompt, deltas in self.generation.deltas():
            async for choice in self._take(prompt, deltas):
                part = choice.take(token_ids=bool(self._request.return_token_ids))
                if first[prompt]:
                    self._add_prompt_ids(prompt, part)
                first[prompt] = False
                event = {**self._head, "choices": [part], **usage.so_far(self._usage)}
                tokens = len(part["logprobs"]["tokens"]) if part["logprobs"] is not None else 0
                if len(part["text"]) < _STEPS_AT_A_TIME and tokens < _STEPS_AT_A_TIME // 8:
                    yield sse(event)
                else:  # with a long prompt
                    async for data in sse_in_parts(event):
                        yield data
        yield usage.last(self._head, self._usage) + DONE

    async def _take(self, prompt: int, deltas: Sequence[Delta]) -> AsyncIterator[_Choice]:
        """Takes what was read; a choice each time that it has something new."""
        entries, held = self._prompts[prompt], self._held[prompt]
        for delta in deltas:
            if delta.index == PROMPT:
                entries += delta.logprobs
            else:
                held.append(delta)
        prepared = self.generation.streams[prompt].prepared
        if self._request.echo and self._request.logprobs is not None and len(entries) < len(prepared.token_ids) - 1:
            return  # the prompt's log-probabilities come first
        self._held[prompt] = []
        for delta in held:
            choice = self._choice(prompt * self._n + delta.index)
            if self._request.echo and not choice.begun:
                choice.echo(*await self._echo(prompt))
            choice.begun = True
            if self._request.max_tokens == 0:
                choice.finish_reason = "length" if delta.finish_reason else None
                yield choice
                continue
            async for _ in choice.add(delta, self._pace):
                yield choice

    async def _echo(self, prompt: int) -> tuple[str, dict[str, list[Any]] | None]:
        """The prompt's text and log-probabilities."""
        if prompt in self._echoes:
            return self._echoes[prompt]
        prepared = self.generation.streams[prompt].prepared
        text = prepared.text or ""
        logprobs = self._logprobs()
        if logprobs is not None:
            entries = [None, *self._prompts[prompt]]
            tokens = echoed(prepared.token_ids, entries, text, self._tokenizer, self._spelling.open_after)
            for token in tokens:
                await logprobs.add(token, token.begin)
        self._echoes[prompt] = text, None if logprobs is None else logprobs.take()
        return self._echoes[prompt]

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        if self._request.max_tokens == 0:
            usage = usage._replace(completion=0)
        return usage.chat()
