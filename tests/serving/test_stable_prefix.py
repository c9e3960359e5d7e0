"""First lines of system messages that change: where they go, and what prompts share then."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.messages import Submit
from serving.request import ChatPrompt, TextPrompt
from serving.stable_prefix import DEFAULT_PATTERN, StablePrefix
from tests.serving.harness import run
from tests.serving.http.harness import http_serving

BILLING = "x-anthropic-billing-header: cc_version=2.1.197.1c0; cc_entrypoint=sdk-cli;"
DATE = "Today's date is 2026-11-30."
USER = {"role": "user", "content": "go"}


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def moved(*messages: dict[str, Any], pattern: str = DEFAULT_PATTERN) -> list[Any]:
    found = StablePrefix(pattern)(ChatPrompt(messages))
    assert isinstance(found, ChatPrompt)
    return list(found.messages)


def test_lines_that_change_move_to_the_end() -> None:
    system = {"role": "system", "content": "S"}
    whole = {"role": "system", "content": f"{BILLING}\nS"}
    parts = {"role": "system", "content": [text(BILLING), text("S")]}
    assert moved(whole, USER) == [system, {"role": "user", "content": f"go\n{BILLING}"}]
    assert moved(parts, USER) == [{**system, "content": [text("S")]}, {"role": "user", "content": f"go\n{BILLING}"}]
    both = {"role": "developer", "content": [text(f"{BILLING}\n{DATE}\nS")]}
    asked = {"role": "user", "content": [text("go")]}
    assert moved(both, USER, asked) == [
        {"role": "developer", "content": [text("S")]},
        USER,
        {"role": "user", "content": [text("go"), text(f"{BILLING}\n{DATE}")]},
    ]
    alone = {"role": "system", "content": DATE}
    assert moved(alone, {"role": "tool", "content": "21"}) == [{"role": "tool", "content": f"21\n{DATE}"}]
    assert moved({"role": "system", "content": "NOW 1\nS"}, USER, pattern="NOW") == [
        system,
        {"role": "user", "content": "go\nNOW 1"},
    ]


def test_all_else_stays() -> None:
    changing = {"role": "system", "content": f"{BILLING}\nS"}
    for messages in (
        [{"role": "system", "content": f"S\n{BILLING}"}, USER],
        [{"role": "user", "content": BILLING}, USER],
        [{"role": "system", "content": "x-a:" + "a" * 512}, USER],
        [{"role": "system", "content": ""}, USER],
        [changing],
        [changing, USER, {"role": "assistant", "content": "so far"}],
    ):
        assert moved(*messages) == messages
    assert moved(changing, USER, pattern="NOW") == [changing, USER]
    prompt = TextPrompt(BILLING)
    assert StablePrefix()(prompt) is prompt
    with pytest.raises(ValueError, match=r"'\(' is no regular expression: missing"):
        StablePrefix("(")


def session(number: int, turn: int) -> list[dict[str, Any]]:
    """What an agent has sent by a turn: everything is as in other sessions but for the first line."""
    line = f"x-billing: session {number}, request {turn}"
    system = {"role": "system", "content": [text(line), text("You help. " * 200)]}
    turns = [{"role": "user", "content": "go"}]
    for i in range(turn):
        turns += [{"role": "assistant", "content": f"I look {i}. " * 5}, {"role": "user", "content": f"found {i} " * 9}]
    return [system, *turns]


@pytest.mark.parametrize(("stable", "least", "most"), [(True, 0.9, 1), (False, 0, 0.05)])
def test_a_session_that_comes_again_shares_its_prompts(stable: bool, least: float, most: float) -> None:
    async def test() -> None:
        async with http_serving(stable_prefix=StablePrefix() if stable else None) as s:
            for number in range(2):
                for turn in range(10):
                    messages = session(number, turn)
                    body = {"messages": messages, "max_tokens": 1}
                    assert (await s.post("/v1/chat/completions", **body)).status_code == 200
            prompts = [submit.prompt_token_ids for submit in s.grpc.received(Submit)]
            assert all("x-billing" in bytes(prompt[-120:] if stable else prompt[:60]).decode() for prompt in prompts)
            again = range(10, 20)
            shared = sum(max(_shared(prompts[i], earlier) for earlier in prompts[:i]) for i in again)
            assert least <= shared / sum(len(prompts[i]) for i in again) <= most

    run(test())


def _shared(prompt: tuple[int, ...], earlier: tuple[int, ...]) -> int:
    """Tokens at the beginning of both."""
    pairs = zip(prompt, earlier, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(prompt), len(earlier)))
