"""How much a model reasons: an effort reaches the templates that read one, and is reported by name elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.messages import Submit, ThinkingBudget
from jaxinfer.text import load_tokenizer
from serving.http.models import EFFORTS
from tests.fakes import write_tokenizer
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving

CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
SHOWN = "{{ messages[0].content }}"
EFFORT = "{% if reasoning_effort is defined %}<{{ reasoning_effort }}>{% endif %}"
THINKING = "{% if enable_thinking is defined %}<{{ enable_thinking }}>{% endif %}"


def with_template(s: HttpServer, folder: Path, template: str) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    frontend = s.grpc.server.frontend
    assert frontend.model is not None
    frontend.model = replace(frontend.model, tokenizer=load_tokenizer(folder))


def prompt(s: HttpServer) -> str:
    return bytes(s.grpc.received(Submit)[-1].prompt_token_ids).decode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses"])
def test_an_effort_reaches_what_the_template_reads(path, tmp_path):
    folder = write_tokenizer(tmp_path)

    def asked(effort: str | None) -> dict[str, Any]:
        if path == "/v1/responses":
            return {"input": "hi", "max_output_tokens": 4, "reasoning": {"effort": effort}}
        return {**CHAT, "reasoning_effort": effort}

    async def test():
        async with http_serving() as s:
            for template, shown in (
                (EFFORT + SHOWN, "<{effort}>hi"),
                (THINKING + SHOWN, "<{thinking}>hi"),
                (EFFORT + THINKING + SHOWN, "<{effort}><{thinking}>hi"),
                (SHOWN, "hi"),
            ):
                with_template(s, folder, template)
                for effort in EFFORTS:
                    response = await s.post(path, **asked(effort))
                    assert response.status_code == 200, response.text
                    assert prompt(s) == shown.format(effort=effort, thinking=effort != "none")
                    name = "reasoning.effort" if path == "/v1/responses" else "reasoning_effort"
                    assert response.headers.get("x-jaxinfer-ignored") == (name if template == SHOWN else None)
                response = await s.post(path, **asked(None))
                assert prompt(s) == "hi"
                assert "x-jaxinfer-ignored" not in response.headers
                response = await s.post(path, **asked("high"), chat_template_kwargs={"enable_thinking": False})
                assert prompt(s) == shown.format(effort="high", thinking=False)  # as the client says
            error = await s.refused(path, **asked("much"))
            assert "none, minimal, low, medium, high, xhigh or max" in error["message"]

    run(test())


def test_a_budget_in_the_models_format(tmp_path):
    folder = write_tokenizer(tmp_path)

    async def budget(s: HttpServer, tokens: int, **more: Any) -> ThinkingBudget | None:
        assert (await s.post("/v1/chat/completions", **CHAT, thinking_token_budget=tokens, **more)).status_code == 200
        return s.grpc.received(Submit)[-1].thinking

    async def test():
        async with http_serving(reasoning_parser="think") as s:
            spelled = tuple(b"</think>")
            assert await budget(s, 5) == ThinkingBudget(5, False, (b"<think>",), (b"</think>",), spelled)
            await s.post("/v1/chat/completions", **CHAT)
            assert s.grpc.received(Submit)[-1].thinking is None
            error = await s.refused("/v1/chat/completions", **CHAT, thinking_token_budget=-1)
            assert (error["param"], "an integer of 0 or more" in error["message"]) == ("thinking_token_budget", True)
            with_template(s, folder, SHOWN + "<think>")
            found = await budget(s, 0)
            assert found is not None
            assert found.begun
            with_template(s, folder, SHOWN + "<think></think>")
            assert await budget(s, 9) is None
        async with http_serving(reasoning_parser="harmony") as s:
            found = await budget(s, 7)
            assert found is not None
            assert (found.opens, found.channel) == ((b"<|channel|>analysis",), b"<|channel|>")
            assert bytes(found.closing) == b"<|end|><|start|>assistant<|channel|>"
        async with http_serving() as s:
            error = await s.refused("/v1/chat/completions", **CHAT, thinking_token_budget=5)
            assert (error["param"], "reasoning" in error["message"]) == ("thinking_token_budget", True)

    run(test())
