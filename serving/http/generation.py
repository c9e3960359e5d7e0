"""What the engine gives for one HTTP request: the streams of its prompts, and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple

from jaxinfer.outputs import Delta
from serving.errors import Refusal
from serving.frontend.frontend import Frontend
from serving.frontend.stream import GenerationStream
from serving.pace import Pace

_STREAM_STEPS = 32  # of `Pace`: to begin following one of many streams, or to end it
_Queue = asyncio.Queue[tuple[int, list[Delta] | Refusal | None]]  # None: the prompt's stream has ended


class Usage(NamedTuple):
    """Tokens. `cached`: of the prompt, taken from the prefix cache."""

    prompt: int
    completion: int
    cached: int

    def chat(self, reasoning: int = 0) -> dict[str, Any]:
        """As completions and chat completions write it."""
        usage: dict[str, Any] = {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }
        if reasoning:
            usage["completion_tokens_details"] = {"reasoning_tokens": reasoning}
        return usage

    def responses(self, reasoning: int) -> dict[str, Any]:
        """As the Responses API writes it. OpenAI's clients need the number of tokens whose place in the cache costs
        something: none here."""
        return {
            "input_tokens": self.prompt,
            "input_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": 0},
            "output_tokens": self.completion,
            "output_tokens_details": {"reasoning_tokens": reasoning},
            "total_tokens": self.prompt + self.completion,
        }


class Generation:
    """The open streams of one HTTP request. Must be closed."""

    def __init__(self, frontend: Frontend, streams: Sequence[GenerationStream]) -> None:
        self._frontend = frontend
        self._readers: list[asyncio.Task[None]] = []
        self.streams = streams

    async def deltas(self) -> AsyncIterator[tuple[int, list[Delta]]]:
        """(which prompt, what its stream gave at once) until all have ended. Raises Refusal."""
        if len(self.streams) == 1:
            (stream,) = self.streams
            while (deltas := await stream.read()) is not None:
                yield 0, deltas
            return
        # One place for each prompt: what a slow client has not taken yet stays merged in the streams.
        queue: _Queue = asyncio.Queue(len(self.streams))
        pace, known, usage = Pace(), list[tuple[int, int, int]](), [0, 0, 0]
        for index, stream in enumerate(self.streams):
            self._readers.append(asyncio.create_task(_read(index, stream, queue)))
            known.append(stream.usage)
            for i, tokens in enumerate(known[-1]):
                usage[i] += tokens
            await pace.spend(_STREAM_STEPS)
        self._usage, left = usage, len(self.streams)
        while left:
            index, item = await queue.get()
            if item is None:
                left -= 1
                self._frontend.close(self.streams[index])  # not all of them in one piece at the end
                await pace.spend(_STREAM_STEPS)
            elif isinstance(item, Refusal):
                raise item
            else:
                before, known[index] = known[index], self.streams[index].usage
                for i, (old, new) in enumerate(zip(before, known[index], strict=True)):
                    usage[i] += new - old
                yield index, item

    def fail(self, refusal: Refusal) -> None:
        for stream in self.streams:
            stream.fail(refusal)

    def close(self) -> None:
        """Aborts what still runs. Idempotent."""
        for reader in self._readers:
            reader.cancel()
        for stream in self.streams:
            self._frontend.close(stream)

    _usage: Sequence[int] = ()  # of many prompts together, once they are read

    @property
    def usage(self) -> Usage:
        """So far. Of many prompts it is kept: an event of one of them must not count all."""
        if self._usage:
            return Usage(*self._usage)
        return Usage(*(sum(column) for column in zip(*(stream.usage for stream in self.streams), strict=True)))


async def _read(index: int, stream: GenerationStream, queue: _Queue) -> None:
    try:
        while (deltas := await stream.read()) is not None:
            await queue.put((index, deltas))
        await queue.put((index, None))
    except Refusal as refusal:
        await queue.put((index, refusal))
