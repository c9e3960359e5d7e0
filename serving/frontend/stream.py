"""One request on the server's side of the engine's process boundary: takes the engine's news at once, hands them to a
reader.

The engine is never slowed by a slow reader, and memory stays bounded by the request's own result: what the reader has
not taken yet is merged, per sequence, into one pending delta. Stop strings are found when the token arrives, not when
it is read.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from jaxinfer.messages import PromptScored, SequenceOutput
from jaxinfer.outputs import PROMPT, CompletionOutput, Delta, RequestStream
from jaxinfer.text import Tokenizer
from serving.errors import Refusal
from serving.filters.contract import Filter
from serving.filters.outputs import FilteredText
from serving.observing.record import RequestRecord
from serving.request import PreparedRequest


class GenerationStream:
    """Follows one request. `engine_id` is its name towards the engine, unique over the server's life, so that news of
    a request that was given up never reach a later one with the same client-chosen id."""

    def __init__(
        self,
        prepared: PreparedRequest,
        record: RequestRecord,
        tokenizer: Tokenizer | None,
        output_filter: Filter | None = None,
    ) -> None:
        self.prepared = prepared
        self._filters: list[FilteredText] = []
        if output_filter is not None:
            self._filters = [FilteredText(output_filter, record.origin.tenant) for _ in range(prepared.params.n)]
            self._filtered: list[list[str]] = [[] for _ in range(prepared.params.n)]
        self.record = record
        self.engine_id = record.engine_id
        self._tokenizer = tokenizer
        self._request = RequestStream(
            prepared.request_id,
            prepared.text,
            prepared.token_ids,
            prepared.params,
            tokenizer,
            kept_tokens=prepared.kept_tokens,
            reading=prepared.reading,
            prompt_end=prepared.prompt_end,
        )
        self._pending: dict[int, Delta] = {}  # by sequence
        self._prompt_sent = 1  # position 0 has no log-probability
        self._refusal: Refusal | None = None
        self._wake = asyncio.Event()

    # -- the engine's side ----------------------------------------------------------------------------------------

    def push(self, output: SequenceOutput) -> Delta | None:
        """Takes one output: what the reader gets of it, None when the sequence had already ended on this side. A delta
        that is `stopped` asks for the sequence to be aborted, because a stop string was found. Raises the output
        filter's Refusal."""
        delta = self._request.push(output)
        if delta is None:
            return None
        shown = self._filter(delta) if self._filters else delta
        pending = self._pending.setdefault(delta.index, shown)
        if pending is not shown:
            pending.add(shown)
        if not self.prepared.final_only or self._request.finished:
            self._wake.set()
        return delta

    def _filter(self, delta: Delta) -> Delta:
        """What the filter lets the reader see: its tokens would tell what the text does not say."""
        index = delta.index
        text = self._filters[index].push(delta.text, last=delta.finish_reason is not None)
        self._filtered[index].append(text)
        return replace(delta, texts=[text] if text else [], token_ids=[], logprobs=[], ends=[])

    def push_prompt(self, scored: PromptScored) -> None:
        self._request.push_prompt(scored)
        if not self.prepared.final_only:
            self._wake.set()

    def fail(self, refusal: Refusal) -> None:
        """Ends the stream with a status, after what is pending. A finished stream stays finished."""
        if not self.finished and self._refusal is None:
            self._refusal = refusal
            self._wake.set()

    @property
    def finished(self) -> bool:
        """Every sequence has its finish reason."""
        return self._request.finished

    @property
    def unfinished(self) -> int:
        """Sequences without a finish reason."""
        return self.prepared.params.n - len(self.record.reasons)

    # -- the reader's side ----------------------------------------------------------------------------------------

    async def read(self) -> list[Delta] | None:
        """Waits for news and takes all of them: what was scored of the prompt first, then a delta for each sequence
        that has something new. None once everything was read. Raises the `Refusal` of `fail`."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            deltas = self._take()
            if self.finished or self._refusal is not None:
                self._wake.set()  # the end is never waited for twice
            if deltas:
                return deltas
            if self._refusal is not None:
                raise self._refusal.again()  # many streams may share it
            if self.finished:
                return None

    def _take(self) -> list[Delta]:
        entries = self._request.result.prompt_logprobs or []
        start = self._prompt_sent
        scored = [entry for entry in entries[start:] if entry is not None]
        self._prompt_sent = start + len(scored)
        deltas, self._pending = list(self._pending.values()), {}
        return [Delta(PROMPT, logprobs=scored, start=start), *deltas] if scored else deltas

    def content(self) -> dict[str, Any]:
        """Prompt and outputs, for an operator who wants them in the log."""
        result = self._request.result
        prompt: Any = result.prompt
        if prompt is None:
            ids = result.prompt_token_ids
            prompt = ids if self._tokenizer is None else self._tokenizer.decode(ids, skip_special_tokens=False)
        tokens = not self._filters
        outputs: list[Any] = []
        for sequence in result.outputs:
            text = sequence.text if tokens else "".join(self._filtered[sequence.index])
            outputs.append(text or (sequence.token_ids if tokens else ""))
        return {"prompt": prompt, "outputs": outputs}

    def output(self, index: int) -> CompletionOutput:
        """One sequence's result so far, whether the reader has taken it or not; its text is not filtered."""
        return self._request.result.outputs[index]

    @property
    def pinned_tokens(self) -> int:
        """How much of the prompt is pinned, from its beginning on."""
        return self._request.pinned_tokens

    @property
    def usage(self) -> tuple[int, int, int]:
        """Tokens: prompt, completion of all sequences, prompt tokens taken from the prefix cache."""
        result = self._request.result
        completion = sum(len(sequence.token_ids) for sequence in result.outputs)
        return len(result.prompt_token_ids), completion, result.num_cached_tokens
