"""gpt-oss's format over both protocols: its tags are special tokens, its template has an effort to reason, and what was
answered goes back into the conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.config import ConfigError
from jaxinfer.messages import Submit
from jaxinfer.text import load_tokenizer
from jaxinfer.text.answers import OutputParser, OutputParserNames, collect
from jaxinfer.text.answers.harmony_header import TAGS
from protos.jaxinfer.v1 import inference_pb2 as pb
from serving.http.api import ApiConfig
from tests.fakes import write_tokenizer
from tests.jaxinfer.text.answers import templates
from tests.serving import harness
from tests.serving.harness import collect as collect_stream
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

TOKENS = {tag: chr(i) for i, tag in enumerate(TAGS, 1)}  # the fake's tokens are bytes: these take the first few
A, F, S = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant"
PREAMBLE = f"{A}He asks.{S}<|channel|>commentary<|message|>I look."
CALL = f'{S}<|channel|>commentary to=functions.get_tide <|constrain|>json<|message|>{{"harbour": "Brest"}}<|call|>'
TOOL = {"name": "get_tide", "parameters": {"type": "object", "properties": {"harbour": {"type": "string"}}}}
CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tides?"}],
    "temperature": 0,
    "tools": [{"type": "function", "function": TOOL}],
}
RESPONSE = {"input": "Tides?", "temperature": 0, "tools": [{"type": "function", **TOOL}]}


@pytest.fixture(autouse=True)
def tags_are_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_tokenizer(tmp_path)
    description = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = description["model"]["vocab"]
    for tag, character in TOKENS.items():
        index = ord(character)
        del vocabulary[next(piece for piece, found in vocabulary.items() if found == index)]
        vocabulary[tag] = index
        description["added_tokens"].append({"id": index, "content": tag, "special": True, **_FLAGS})
    description["added_tokens"].sort(key=lambda token: token["id"])
    (folder / "tokenizer.json").write_text(json.dumps(description))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": templates.HARMONY_NARROW}))
    loaded = load_tokenizer(folder)
    assert loaded.encode(A, add_special_tokens=False) == list(script(A).encode())
    monkeypatch.setattr("tests.serving.harness.tokenizer", lambda: loaded)


_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def script(text: str) -> str:
    for tag, character in TOKENS.items():
        text = text.replace(tag, character)
    return text


def prompt(server: HttpServer) -> str:
    ids = server.grpc.received(Submit)[-1].prompt_token_ids
    return harness.tokenizer().decode(ids, skip_special_tokens=False)


def deltas(events: list[Any]) -> dict[str, Any]:
    """What the deltas of a chat's stream add up to."""
    found: dict[str, Any] = {"reasoning": "", "content": "", "calls": [], "finish": None}
    for choice in (event["choices"][0] for event in events[:-1]):
        delta = choice["delta"]
        found["reasoning"] += delta.get("reasoning") or ""
        found["content"] += delta.get("content") or ""
        for call in delta.get("tool_calls", ()):
            function = call["function"]
            if "name" in function:
                found["calls"].append([function["name"], ""])
            found["calls"][-1][1] += function.get("arguments", "")
        found["finish"] = choice["finish_reason"] or found["finish"]
    return found


def test_chats() -> None:
    """The end of a call is a stop token, as in gpt-oss's generation_config.json; `<|end|>` is none."""
    call_ends = {"stop_token_ids": [ord(TOKENS["<|call|>"])]}

    async def test() -> None:
        async with http_serving(says(script(PREAMBLE + CALL))) as s:
            choice = (await s.chat(**CHAT, **call_ends, max_tokens=None))["choices"][0]
            assert (choice["finish_reason"], choice["stop_reason"]) == ("tool_calls", ord(TOKENS["<|call|>"]))
            message = choice["message"]
            assert (message["reasoning"], message["content"]) == ("He asks.", "I look.")
            functions = [call["function"] for call in message["tool_calls"]]
            assert functions == [{"name": "get_tide", "arguments": '{"harbour": "Brest"}'}]
            streamed = deltas(await s.events("/v1/chat/completions", **CHAT, **call_ends))
            assert streamed == {
                "reasoning": "He asks.",
                "content": "I look.",
                "calls": [["get_tide", '{"harbour": "Brest"}']],
                "finish": "tool_calls",
            }
            plain = {name: value for name, value in CHAT.items() if name != "tools"}
            untold = (await s.chat(**plain, max_tokens=None))["choices"][0]["message"]
            assert untold["content"] == 'I look.\n{"harbour": "Brest"}'  # no tools, no calls

            told = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "high"}
            await s.chat(**{**CHAT, "messages": [*CHAT["messages"], message, told]})
            call = ' to=functions.get_tide<|channel|>commentary json<|message|>{"harbour": "Brest"}<|call|>'
            result = '<|start|>functions.get_tide to=assistant<|channel|>commentary<|message|>"high"<|end|>'
            assert prompt(s).endswith(f"<|start|>assistant{A}He asks.\n\nI look.{S}{call}{result}<|start|>assistant")

    run(test())


def test_responses() -> None:
    async def test() -> None:
        async with http_serving(says(script(f"{A}One.{S}{A}Two.{S}<|channel|>commentary<|message|>Three.{CALL}"))) as s:
            whole = (await s.post("/v1/responses", **RESPONSE)).json()
            events = await s.events("/v1/responses", **RESPONSE)
            for output in (whole["output"], events[-1]["response"]["output"]):
                assert [item["type"] for item in output] == ["reasoning", "message", "function_call"]
                assert [item["content"][0]["text"] for item in output[:2]] == ["One.\nTwo.", "Three."]
                assert (output[2]["name"], output[2]["arguments"]) == ("get_tide", '{"harbour": "Brest"}')
            assert whole["usage"]["output_tokens_details"] == {"reasoning_tokens": len("One.Two.")}
            items = [
                *whole["output"],
                {"type": "function_call_output", "call_id": output[2]["call_id"], "output": "low"},
            ]
            asked = {"role": "user", "content": "Tides?"}
            answer = await s.post("/v1/responses", **{**RESPONSE, "input": [asked, *items]})
            assert answer.status_code == 200, answer.text
            assert f"{A}One.\nTwo.\n\nThree.<|end|>" in prompt(s)
        async with http_serving(says(script(f"<|channel|>commentary<|message|>A.{S}{A}b{S}{F}C."))) as s:
            whole = (await s.post("/v1/responses", **RESPONSE)).json()
            assert [item["content"][0]["text"] for item in whole["output"]] == ["A.", "b", "C."]
            assert (await s.chat(**CHAT, max_tokens=None))["choices"][0]["message"]["content"] == "A.\nC."

    run(test())


def test_efforts_reach_the_template() -> None:
    async def test() -> None:
        async with http_serving(says(script(f"{F}hi"))) as s:
            for field, path, body in (
                ({"reasoning_effort": "high"}, "/v1/chat/completions", CHAT),
                ({"chat_template_kwargs": {"reasoning_effort": "high"}}, "/v1/chat/completions", CHAT),
                ({"reasoning": {"effort": "high", "summary": "auto"}}, "/v1/responses", RESPONSE),
            ):
                answer = await s.post(path, **body, **field)
                assert answer.status_code == 200, answer.text
                assert prompt(s).startswith("<|start|>system<|message|>Reasoning: high<|end|>")
            assert answer.json()["reasoning"] == {"effort": "high", "summary": None}
            for effort, nearest in (("none", "low"), ("minimal", "low"), ("xhigh", "high"), ("max", "high")):
                answer = await s.post("/v1/chat/completions", **CHAT, reasoning_effort=effort)
                assert answer.status_code == 200, answer.text
                assert prompt(s).startswith(f"<|start|>system<|message|>Reasoning: {nearest}<|end|>")
                assert answer.headers["x-jaxinfer-ignored"] == "reasoning_effort"
            kwargs = {"reasoning_effort": "low"}
            error = await s.refused(
                "/v1/responses", **RESPONSE, reasoning={"effort": "high"}, chat_template_kwargs=kwargs
            )
            assert error["param"] == "reasoning.effort"

    run(test())


def test_stop_strings_wait_for_the_answer() -> None:
    async def test() -> None:
        async with http_serving(says(script(f"{A}STOP it.{S}{F}Well. STOP it."))) as s:
            choice = (await s.chat(**CHAT, stop=["STOP"], max_tokens=None))["choices"][0]
            assert (choice["message"]["reasoning"], choice["message"]["content"]) == ("STOP it.", "Well. ")
            assert choice["stop_reason"] == "STOP"

    run(test())


@pytest.mark.parametrize(
    ("opened", "answer", "reasoning"),
    [(F, " Well, to=day.\n", None), (A, f"So.{S}{F} Well, to=day.\n", "So."), ("", f"{F} Well, to=day.\n", None)],
    ids=["final", "analysis", "nothing"],
)
def test_what_the_prompt_has_opened(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, opened: str, answer: str, reasoning: str | None
) -> None:
    folder = tmp_path
    config = json.loads((folder / "tokenizer_config.json").read_text())
    template = templates.HARMONY_NARROW.replace("'<|start|>assistant' if add", f"'<|start|>assistant{opened}' if add")
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    loaded = load_tokenizer(folder)
    monkeypatch.setattr("tests.serving.harness.tokenizer", lambda: loaded)

    async def test() -> None:
        async with http_serving(says(script(answer))) as s:
            message = (await s.chat(**CHAT, max_tokens=None))["choices"][0]["message"]
            assert prompt(s).endswith(f"<|start|>assistant{opened}")
            assert (message["content"], message.get("reasoning")) == (" Well, to=day.\n", reasoning)

    run(test())


def test_half_of_the_format_is_refused_before_a_start() -> None:
    with pytest.raises(ConfigError, match="tool_calls is 'hermes' and reasoning 'harmony'"):
        ApiConfig("hermes", "openai_gptoss")


def test_grpc_gives_the_models_own_text() -> None:
    """With its tags where special tokens are shown, and then parsers read it as over HTTP."""
    answer = PREAMBLE + CALL

    async def test() -> None:
        async with http_serving(says(script(answer))) as s:
            chat = pb.Chat(
                messages=[pb.ChatMessage(role="user", content="Tides?")], tools_json=[json.dumps(CHAT["tools"][0])]
            )
            for skip, expected in ((False, answer), (True, _untagged(answer))):
                sampling = pb.SamplingParams(temperature=0, max_tokens=len(script(answer)), skip_special_tokens=skip)
                found = await collect_stream(s.grpc.stub.Generate(pb.GenerateRequest(chat=chat, sampling=sampling)))
                assert found.text() == expected
            parser = OutputParser(OutputParserNames("harmony", "harmony"), tools=("get_tide",), whole=True)
            read = collect([*parser.push(answer), *parser.finish()])
            message = (await s.chat(**CHAT, max_tokens=None))["choices"][0]["message"]
            assert (read.content, read.reasoning) == (message["content"], message["reasoning"])
            assert [call.arguments for call in read.calls] == [
                call["function"]["arguments"] for call in message["tool_calls"]
            ]

    run(test())


def _untagged(text: str) -> str:
    for tag in TAGS:
        text = text.replace(tag, "")
    return text
