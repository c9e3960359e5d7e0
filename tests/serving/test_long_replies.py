"""Long messages of the gRPC port are made in slices: what is made between two turns of others is bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from jaxinfer.messages import TokenLogprobs
from jaxinfer.outputs import PROMPT, CompletionOutput, Delta
from serving.gateways import infer_convert, vllm_convert
from serving.grpc_server import replies
from serving.pace import STEPS, Pace
from tests.serving.harness import tokenizer

TOKENS, TOP = 3000, 20
ENTRY = TokenLogprobs(5, -0.5, 1, tuple((i, -float(i)) for i in range(TOP)))
WIDE = TokenLogprobs(5, -0.5, 1, tuple((i % 256, -1.0) for i in range(20_000)))


class Turns:
    """Counts the steps that work tells its pace between two turns of another task."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all = self.most = self._now = 0
        spend = Pace.spend

        def counted(pace: Pace, steps: int) -> Awaitable[None]:
            self._now += steps
            self.all += steps
            return spend(pace, steps)

        monkeypatch.setattr(Pace, "spend", counted)

    async def others(self) -> None:
        while True:
            self.most, self._now = max(self.most, self._now), 0
            await asyncio.sleep(0)

    def run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def both() -> Any:
            other = asyncio.create_task(self.others())
            await asyncio.sleep(0)
            try:
                return await work()
            finally:
                other.cancel()

        return asyncio.run(both())


def stream(entries: list[TokenLogprobs], n: int = 1) -> Any:
    """A finished request, as far as replies look at it."""
    output = CompletionOutput(0, logprobs=entries)
    output.token_ids, output.cumulative_logprob, output.finish_reason = [5] * len(entries), -1.0, "length"
    params = SimpleNamespace(logprobs=TOP, prompt_logprobs=TOP, n=n, skip_special_tokens=True)
    prepared = SimpleNamespace(token_ids=[5] * (len(entries) + 1), params=params, text="x")
    return SimpleNamespace(prepared=prepared, usage=(1, len(entries), 0), output=lambda _: output)


async def listed(messages: AsyncIterator[Any]) -> list[Any]:
    return [message async for message in messages]


@pytest.mark.parametrize("entries", [[ENTRY] * TOKENS, [WIDE] * 2], ids=["many", "wide"])
def test_messages_are_made_in_slices(entries: list[TokenLogprobs], monkeypatch: pytest.MonkeyPatch):
    turns = Turns(monkeypatch)
    piece = Delta(0, ["x"], [5] * len(entries), entries, "length", tokens=len(entries), ends=[1] * len(entries))
    news = [Delta(PROMPT, logprobs=entries, start=1), piece]
    alternatives = sum(len(entry.top) for entry in entries)

    own = turns.run(lambda: listed(replies.messages(news)))
    assert sum(len(entry.top) for message in own for entry in message.delta.logprobs) == alternatives
    assert sum(len(entry.top) for message in own for entry in message.prompt_logprobs.entries) == alternatives

    gateway = vllm_convert.VllmReplies(stream(entries), chunks=True)
    told = turns.run(lambda: listed(gateway.messages(news)))
    assert sum(len(top.values) for m in told for top in m.chunk.output_logprobs.top_logprobs) == alternatives
    complete = told[-1].complete
    assert sum(len(top.token_ids) for top in complete.output_logprobs.top_logprobs) == alternatives
    assert sum(len(top.values) for top in complete.input_logprobs.top_logprobs) == alternatives
    assert list(complete.input_logprobs.token_ids) == [5] * (len(entries) + 1)
    assert not complete.input_logprobs.token_logprobs[0].HasField("value")

    asked = SimpleNamespace(outputs=("text_output", "logprobs"), prepend_input=False, id="1", raw=False)
    triton = infer_convert.InferReplies(stream(entries), asked, "fake", tokenizer())  # type: ignore[arg-type]
    message = turns.run(lambda: triton.message(news))
    (data,) = message.outputs[1].contents.bytes_contents
    assert [len(position) for position in json.loads(data)] == [len({5} | {t for t, _ in e.top}) for e in entries]

    assert turns.all > 5 * alternatives / 8
    assert turns.most <= STEPS + max(len(entry.top) for entry in entries) // 8 + 1100


def test_what_is_told_stands_in_order():
    """The slices of one message add up to what was given."""
    entries = [TokenLogprobs(i % 250, -float(i), 1, ((i % 250, -float(i)),)) for i in range(1000)]
    gateway = vllm_convert.VllmReplies(stream(entries), chunks=False)
    piece = Delta(0, ["x"], [5], entries, "length", ends=[1])
    (message,) = asyncio.run(listed(gateway.messages([Delta(PROMPT, logprobs=entries, start=1), piece])))
    told = message.complete.output_logprobs
    assert list(told.token_logprobs) == [entry.logprob for entry in entries]
    assert list(told.token_ids) == [entry.token_id for entry in entries]
    assert [list(top.token_ids) for top in told.top_logprobs] == [[entry.token_id] for entry in entries]
    assert [v.value for v in message.complete.input_logprobs.token_logprobs][1:] == [e.logprob for e in entries]
