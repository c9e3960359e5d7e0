"""POST /v1/completions: the answer, whole or in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from jaxinfer.messages import TokenLogprobs
from serving.http.generation import Generation
from serving.http.logprobs import CompletionLogprobs, Spelling, prompt_logprobs
from serving.http.models import CompletionRequest
from serving.http.reply import DONE, Reply, StreamUsage, sse
from serving.request import ModelContext
from serving.stream import News, Piece


class _Choice:
    """One of the answers to one of the prompts; `take` gives what came since the last call."""

    def __init__(self, index: int, logprobs: CompletionLogprobs | None) -> None:
        self.index = index
        self.logprobs = logprobs
        self.begun = False
        self.text: list[str] = []
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: int | str | None = None

    def add(self, piece: Piece) -> None:
        self.text += piece.text
        self.token_ids += piece.token_ids
        if self.logprobs is not None:
            for entry in piece.logprobs:
                self.logprobs.add(entry.token_id, entry)
        self.finish_reason, self.stop_reason = piece.finish_reason, piece.stop_reason

    def take(self, *, token_ids: bool) -> dict[str, Any]:
        choice: dict[str, Any] = {
            "index": self.index,
            "text": "".join(self.text),
            "logprobs": None if self.logprobs is None else self.logprobs.take(),
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
        }
        if token_ids:
            choice["token_ids"] = self.token_ids
        self.text, self.token_ids = [], []
        return choice


class CompletionReply(Reply):
    def __init__(self, request: CompletionRequest, generation: Generation, context: ModelContext) -> None:
        super().__init__(generation, context.name, stream=bool(request.stream))
        self._request = request
        self._tokenizer = context.tokenizer
        self._spelling = Spelling(context.tokenizer, as_ids=bool(request.return_tokens_as_token_ids))
        self._n = request.n or 1
        self._prompts: list[list[TokenLogprobs]] = [[] for _ in generation.streams]
        self._held: list[list[Piece]] = [[] for _ in generation.streams]
        self._choices = [_Choice(i, self._logprobs()) for i in range(len(generation.streams) * self._n)]
        self._head = {
            "id": "cmpl-" + generation.streams[0].prepared.request_id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
        }

    def _logprobs(self) -> CompletionLogprobs | None:
        if self._request.logprobs is None:
            return None
        return CompletionLogprobs(self._spelling, skip_special=self._request.skip_special_tokens is not False)

    async def result(self) -> dict[str, Any]:
        async for prompt, news in self.generation.news():
            self._take(prompt, news)
        choices = []
        for choice in self._choices:
            whole = choice.take(token_ids=bool(self._request.return_token_ids))
            self._add_prompt(choice.index // self._n, whole)
            choices.append(whole)
        return {**self._head, "choices": choices, "usage": self._usage()}

    def _add_prompt(self, prompt: int, whole: dict[str, Any]) -> None:
        if self._request.return_token_ids:
            whole["prompt_token_ids"] = self.generation.streams[prompt].prepared.token_ids
        wanted = self._request.prompt_logprobs
        if wanted is not None:
            whole["prompt_logprobs"] = prompt_logprobs(self._prompts[prompt], self._spelling, wanted)

    async def pieces(self) -> AsyncIterator[bytes]:
        usage = StreamUsage(self._request.stream_options)
        first = [bool(self._request.return_token_ids)] * len(self.generation.streams)
        async for prompt, news in self.generation.news():
            parts = []
            for choice in self._take(prompt, news):
                part = choice.take(token_ids=bool(self._request.return_token_ids))
                if first[prompt]:
                    self._add_prompt(prompt, part)
                    first[prompt] = False
                parts.append(sse({**self._head, "choices": [part], **usage.so_far(self._usage)}))
            if parts:
                yield b"".join(parts)
        yield usage.last(self._head, self._usage) + DONE

    def _take(self, prompt: int, news: News) -> list[_Choice]:
        """Takes news; the choices that changed, in the order in which they did."""
        entries = self._prompts[prompt]
        entries += news.prompt_logprobs
        prepared = self.generation.streams[prompt].prepared
        if self._request.echo and self._request.logprobs is not None and len(entries) < len(prepared.token_ids) - 1:
            self._held[prompt] += news.pieces  # the prompt's log-probabilities come first
            return []
        pieces, self._held[prompt] = [*self._held[prompt], *news.pieces], []
        changed: dict[int, _Choice] = {}
        for piece in pieces:
            choice = self._choices[prompt * self._n + piece.index]
            if self._request.echo and not choice.begun:
                self._echo(choice, prompt)
            choice.begun = True
            if self._request.max_tokens == 0:
                choice.finish_reason = "length" if piece.finish_reason else None
            else:
                choice.add(piece)
            changed[choice.index] = choice
        return list(changed.values())

    def _echo(self, choice: _Choice, prompt: int) -> None:
        """Puts the prompt in front."""
        prepared = self.generation.streams[prompt].prepared
        if prepared.text is not None and prepared.params.truncate_prompt_tokens is None:
            text = prepared.text
        elif self._tokenizer is not None:
            text = self._tokenizer.decode(prepared.token_ids, skip_special_tokens=prepared.params.skip_special_tokens)
        else:
            text = ""
        choice.text.append(text)
        if choice.logprobs is not None:
            for token, entry in zip(prepared.token_ids, [None, *self._prompts[prompt]], strict=True):
                choice.logprobs.add(token, entry)
            choice.logprobs.offset = len(text)

    def _usage(self) -> dict[str, Any]:
        usage = self.generation.usage
        if self._request.max_tokens == 0:
            usage = usage._replace(completion=0)
        return usage.chat()
