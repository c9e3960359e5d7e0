"""No field of the Messages API is ignored: it changes what the engine is told or what the answer is, goes to the usage
ledger, or the answer's header names it."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.messages import Submit
from serving.http.decode import no_effects
from serving.http.messages_models import MessagesRequest, MessageTokensRequest
from serving.http.models import RECORDED
from tests.serving import harness
from tests.serving.harness import run
from tests.serving.http.harness import HttpServer, http_serving, says

SAYS = '<think>so</think>I look.<tool_call>{"name": "f", "arguments": {}}</tool_call>'
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }};{% endfor %}{% if tools %}[{{ tools | tojson }}]{% endif %}"
    "{{ style }}{{ reasoning_effort }}{% if enable_thinking is defined %}{{ enable_thinking }}{% endif %}<assistant>"
)
BASE: dict[str, Any] = {
    "messages": [{"role": "user", "content": "hi"}],
    "max_tokens": 100,
    "temperature": 0.5,
    "seed": 1,
}
GREEDY = {"temperature": 0}
TOOLS = [{"name": "f"}]
# Field -> a value, and what else differs from the base.
EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "model": ("gpt-4", {}),
    "stream": (True, {}),
    "temperature": (0.75, {}),
    "top_p": (0.5, {}),
    "top_k": (9, {}),
    "min_p": (0.125, {}),
    "repetition_penalty": (1.5, {}),
    "presence_penalty": (0.5, {}),
    "frequency_penalty": (0.25, {}),
    "seed": (2, {}),
    "stop": (["I"], GREEDY),
    "stop_token_ids": ([7], {}),
    "include_stop_str_in_output": (True, {**GREEDY, "stop": "I"}),
    "ignore_eos": (True, {}),
    "min_tokens": (2, {}),
    "logit_bias": ({"3": 1.5}, {}),
    "allowed_token_ids": ([8], {}),
    "bad_token_ids": ([9], {}),
    "skip_special_tokens": (False, {}),
    "truncate_prompt_tokens": (1, {}),
    "priority": (-3, {}),
    "cache_salt": ("tenant", {}),
    "session_id": ("talk", {}),
    "prompt_cache_retention": ("24h", {}),
    "cache_control": ({"type": "ephemeral"}, {}),
    "request_id": ("mine", {}),
    "max_tokens": (5, {}),
    "messages": ([{"role": "user", "content": "there"}], {}),
    "system": ("S", {}),
    "stop_sequences": (["I"], GREEDY),
    "tools": (TOOLS, {}),
    "tool_choice": ({"type": "none"}, {"tools": TOOLS}),
    "thinking": ({"type": "disabled"}, {}),
    "output_config": ({"effort": "low"}, {}),
    "include_reasoning": (False, GREEDY),
    "chat_template_kwargs": ({"style": "terse"}, {}),
    "output_format": ({"type": "json_schema", "schema": {"type": "object"}}, {}),
    "structured_outputs": ({"json_object": True}, {}),
    "thread": ({"type": "create"}, {}),  # refused
}
NO_EFFECT: dict[str, Any] = {
    "cache_control": {"type": "ephemeral"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015"}]},
    "mcp_servers": [{"name": "x"}],
    "store": True,
    "client_metadata": {"a": 1},
}


@pytest.fixture(autouse=True)
def _template(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fakes.CHAT_TEMPLATE", TEMPLATE)
    monkeypatch.setattr("tests.serving.harness.tokenizer", harness.tokenizer.__wrapped__)


async def outcome(s: HttpServer, path: str = "/v1/messages", **body: Any) -> tuple[Any, set[str]]:
    """Status, what the engine was told and the answer, without ids that differ; and what had no effect."""
    response = await s.post(path, **body)
    submits = s.grpc.received(Submit)
    told = submits[-1]._replace(request_id="", arrival=0.0) if submits else None
    content = [{**block, "id": ""} for block in response.json().get("content", ())] if "stream" not in body else None
    ids = "mine" in response.headers["request-id"]
    ignored = response.headers.get("x-jaxinfer-ignored", "")
    return (response.status_code, told, content, ids), set(filter(None, ignored.split(", ")))


def test_every_field_has_a_place() -> None:
    fields = set(MessagesRequest.__struct_fields__)
    assert fields == {*EFFECTS, *RECORDED, "metadata", *no_effects(MessagesRequest)}
    counted = set(MessageTokensRequest.__struct_fields__)
    assert counted <= fields
    assert no_effects(MessageTokensRequest).keys() == counted & {*no_effects(MessagesRequest), "cache_control"}


def test_every_field_takes_effect() -> None:
    async def test() -> None:
        async with http_serving(says(SAYS), tool_call_parser="hermes", reasoning_parser="think") as s:
            for name, (value, around) in EFFECTS.items():
                plain, _ = await outcome(s, **{**BASE, **around})
                again, _ = await outcome(s, **{**BASE, **around})
                changed, ignored = await outcome(s, **{**BASE, **around, name: value})
                assert plain == again, f"{name}: the comparison would be unequal anyway"
                assert plain[0] == 200, name
                assert changed[0] == {"model": 404, "thread": 400}.get(name, 200), name
                assert changed != plain, name
                assert not ignored, name

    run(test())


def test_every_other_field_is_named_and_changes_nothing() -> None:
    async def test() -> None:
        async with http_serving(says(SAYS)) as s:
            plain, _ = await outcome(s, **BASE)
            for kind, path, body in (
                (MessagesRequest, "/v1/messages", BASE),
                (MessageTokensRequest, "/v1/messages/count_tokens", {"messages": BASE["messages"]}),
            ):
                rules = no_effects(kind)
                given = {name: NO_EFFECT.get(name, "some") for name in rules}
                changed, ignored = await outcome(s, path, **body, **given)
                assert ignored == set(rules)
                assert changed == plain or kind is MessageTokensRequest
                neutral = {name: value for name, rule in rules.items() for value in rule.neutral}
                _, ignored = await outcome(s, path, **body, **neutral)
                assert not ignored
            for name in ("user", "safety_identifier", "metadata"):
                value: Any = {"user_id": "me"} if name == "metadata" else "me"
                assert await outcome(s, **BASE, **{name: value}) == (plain, set())

    run(test())
