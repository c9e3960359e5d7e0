"""Marks of the Messages API and named sessions: what of a prompt the engine is told to pin, and what the usage says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import SamplingParams
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.http.cache_control import created_tokens
from serving.prompts import ChatPrompt
from serving.stable_prefix import StablePrefix
from tests.fakes import FakeOptions
from tests.serving.harness import collect, run, tokenizer
from tests.serving.http.harness import HttpServer, http_serving, says
from tests.serving.http.test_messages import HERMES
from tests.serving.http.test_messages_input import CALL, RESULT, TOOL, USER, converted, text
from tests.serving.test_cache_marks import shown

PATH = "/v1/messages"
MARK: Any = {"cache_control": {"type": "ephemeral"}}
HOUR: Any = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
BODY: dict[str, Any] = {"messages": [USER], "max_tokens": 4}


async def told(s: HttpServer, path: str = PATH, headers: Any = None, **body: Any) -> tuple[Submit, set[str]]:
    """What the engine was told, and what had no effect."""
    response = await s.http.post(path, json={**BODY, **body} if path == PATH else body, headers=headers)
    assert response.status_code == 200, response.text
    ignored = response.headers.get("x-jaxinfer-ignored", "")
    return s.grpc.received(Submit)[-1], set(filter(None, ignored.split(", ")))


def before(submit: Submit, end: int) -> str:
    """The fake's tokens are bytes."""
    return bytes(submit.prompt_token_ids[:end]).decode()


def test_marks_become_tokens_and_seconds() -> None:
    result = {**RESULT, **MARK}
    turns = [USER, {"role": "assistant", "content": [CALL]}, {"role": "user", "content": [result, text("B", **HOUR)]}]
    cases: list[tuple[dict[str, Any], list[tuple[str, float]]]] = [
        ({}, []),
        ({"system": [text("S"), text("T", **MARK)]}, [("<system>S\nT;<user>", 300.0)]),
        ({"system": [text("S", **HOUR), text("T")]}, [("<system>S", 3600.0)]),
        ({"messages": turns},
         [("<user>hi;<assistant>;<tool>21", 300.0), ("<user>hi;<assistant>;<tool>21;<user>B", 3600.0)]),
        (MARK, [("<user>hi", 300.0)]),
        ({**HOUR, "messages": [{"role": "user", "content": [text("A", **MARK), text("B")]}]},
         [("<user>A", 300.0), ("<user>A\nB", 3600.0)]),
    ]  # fmt: skip

    async def test() -> None:
        async with http_serving(says("x"), **HERMES) as s:
            for body, wanted in cases:
                submit, ignored = await told(s, **body)
                assert [(before(submit, end), seconds) for end, seconds in submit.pins] == wanted, body
                assert not ignored
            tools = [{**TOOL, **MARK}, {**TOOL, "name": "g", **MARK}]
            submit, ignored = await told(s, tools=tools)
            first, last = (before(submit, end) for end, _ in submit.pins)
            assert first.endswith('"function": {"name": "')
            assert '"f"' in first
            assert last.startswith(first)
            assert '"g"' in last
            assert '"object"' in last
            assert not ignored

    run(test())


def test_only_a_marked_prompt_is_rendered_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Any] = []
    kind = type(tokenizer())
    render = kind.render_chat
    monkeypatch.setattr(kind, "render_chat", lambda *a, **k: (rendered.append(1), render(*a, **k))[1])

    async def test() -> None:
        async with http_serving(says("x")) as s:
            counts = []
            for body in ({}, MARK):
                await told(s, **body)  # what is found out of a template once
                rendered.clear()
                await told(s, **body)
                counts.append(len(rendered))
            assert counts == [1, 2]

    run(test())


def test_bad_marks_are_named() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"cache_control": {"type": "forever"}}, "cache_control.type is 'forever'; it must be ephemeral"),
        ({"system": [text("S", cache_control={"type": "ephemeral", "ttl": "2h"})]}, "system[0].cache_control.ttl is"),
        ({"messages": [{"role": "user", "content": [text("a", cache_control="x")]}]},
         "messages[0].content[0].cache_control is 'x'; it must be an object"),
        ({"messages": [{"role": "user", "content": [text("a", **MARK)] * 5}]},
         "messages[0].content[4].cache_control is 'mark 5'; at most 4 of a request are allowed"),
        ({"messages": [{"role": "user", "content": [text("a", **MARK)] * 4}], **MARK}, "cache_control is 'mark 5'"),
        ({"session_id": "x" * 257}, "session_id is"),
        ({"prompt_cache_retention": "7d"}, "prompt_cache_retention is '7d'; it must be in_memory or 24h"),
    ]  # fmt: skip

    async def test() -> None:
        async with http_serving(says("x")) as s:
            for body, message in cases:
                response = await s.post(PATH, **{**BODY, **body})
                assert response.status_code == 400, body
                assert message in response.json()["error"]["message"]
            _, ignored = await told(s, cache_control={"type": "ephemeral", "scope": "global"})
            assert ignored == {"cache_control.scope"}
            response = await s.http.post("/v1/completions", json={"prompt": "a"}, headers={"x-session-id": "x" * 257})
            assert "x-session-id is" in response.json()["error"]["message"]

    run(test())


def test_marks_without_effect_are_named() -> None:
    thinking = {"type": "thinking", "thinking": "t", "signature": "", **MARK}
    inner = {**RESULT, "content": [text("21", **MARK)]}
    turns = [USER, {"role": "assistant", "content": [thinking, CALL]}, {"role": "user", "content": [inner]}]

    async def test() -> None:
        async with http_serving(says("x"), **HERMES) as s:
            submit, ignored = await told(s, messages=turns)
            assert submit.pins == ()
            assert ignored == {f"messages[{i}].content[0]{x}.cache_control" for i, x in ((1, ""), (2, ".content[0]"))}
            submit, ignored = await told(s, truncate_prompt_tokens=3, **MARK)
            assert submit.pins == ()
        async with http_serving(FakeOptions(max_pinned_pages=0)) as s:
            submit, ignored = await told(s, system=[text("S", **MARK)], session_id="a", prompt_cache_retention="24h")
            assert (submit.pins, submit.pin_answer) == ((), 0.0)
            assert ignored == {"system[0].cache_control", "session_id"}
            with pytest.raises(grpc.aio.AioRpcError, match=r"session_id is .*; this server pins nothing"):
                await collect(s.grpc.stub.Generate(pb.GenerateRequest(text="a", session_id="a")))

    run(test())


def test_sessions() -> None:
    async def test() -> None:
        async with http_serving(says("x")) as s:
            named = [
                ({}, {}, 0.0),
                ({"prompt_cache_key": "k", "prompt_cache_retention": "in_memory"}, {}, 0.0),
                ({"session_id": "s"}, {}, 300.0),
                ({}, {"x-session-id": "s"}, 300.0),
                ({"prompt_cache_retention": "24h"}, {}, 86400.0),
                ({"session_id": "s", "prompt_cache_retention": "in-memory"}, {}, 300.0),
            ]
            for body, headers, seconds in named:
                for path, asked in (
                    ("/v1/completions", {"prompt": "a"}),
                    ("/v1/chat/completions", {"messages": [USER]}),
                    ("/v1/responses", {"input": "a"}),
                    (PATH, BODY),
                ):
                    submit, ignored = await told(s, path, headers, **asked, **body)
                    assert submit.pin_answer == seconds, (path, body)
                    assert ignored == ({"prompt_cache_key"} if "prompt_cache_key" in body else set())

    run(test())


def test_usage_tells_what_was_pinned() -> None:
    def created(cached: int, pinned: int, *pins: tuple[int, float], answer: float = 0.0) -> tuple[int, int]:
        submit = Submit("r", (1,) * 100, SamplingParams(), 0, 0, 0.0, pins=pins, pin_answer=answer)
        found = created_tokens(submit, cached, pinned)
        return found["ephemeral_5m_input_tokens"], found["ephemeral_1h_input_tokens"]

    assert created(0, 0) == (0, 0)
    assert created(0, 48, (50, 300.0)) == (48, 0)
    assert created(16, 48, (50, 300.0)) == (32, 0)
    assert created(64, 48, (50, 300.0)) == (0, 0)
    assert created(16, 96, (50, 3600.0), (100, 300.0)) == (46, 34)
    assert created(16, 96, (50, 300.0), (100, 3600.0)) == (0, 80)  # the later one keeps the earlier
    assert created(0, 96, answer=300.0) == (96, 0)
    assert created(0, 96, answer=86400.0) == (0, 96)


def test_lines_that_move_behind_a_mark_are_behind_it() -> None:
    line = "x-billing: 7"
    system = [text(line), text("S", **MARK)]
    prompt, _ = converted(pinned_pages=8, system=system, messages=[{"role": "user", "content": [text("go", **HOUR)]}])
    moved = StablePrefix()(prompt)
    assert isinstance(moved, ChatPrompt)
    template = Path("tests/goldens_text/templates/chatml.jinja").read_text()
    rendered, places = shown(moved.messages, moved.tools, template)
    assert [rendered[:place] for place, _ in places] == [
        rendered[: rendered.index("go")], rendered[: rendered.index(f"\n{line}")]
    ]  # fmt: skip
