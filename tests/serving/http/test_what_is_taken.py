"""What clients send that harms nobody is taken as vLLM takes it; the right values are read from vLLM 0.32's source."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from jaxinfer.messages import Submit
from serving.http.models import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    StreamOptions,
    TokenizeRequest,
)
from serving.http.responses_models import ResponsesRequest
from serving.http.whole_numbers import with_whole_numbers
from tests.fakes import FakeOptions
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.gateways.test_open_inference import stub as infer_stub
from tests.serving.gateways.test_vllm_engine import stub as vllm_stub
from tests.serving.harness import collect, greedy, run
from tests.serving.http.harness import http_serving

USER = [{"role": "user", "content": "hi"}]
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "completions": ("/v1/completions", {"prompt": "hi"}),
    "chat": ("/v1/chat/completions", {"messages": USER}),
    "responses": ("/v1/responses", {"input": "hi"}),
}
TOOL = {"type": "function", "function": {"name": "f"}}


# -- max_tokens -------------------------------------------------------------------------------------------------------


def test_more_than_is_left_is_what_is_left_at_every_server():
    """vLLM: min(context - prompt, max_tokens)."""

    async def test():
        async with http_serving(FakeOptions(max_model_len=64), gateways=BOTH) as s:
            last = lambda: s.grpc.received(Submit)[-1]  # noqa: E731
            for name, (path, body) in BODIES.items():
                limit = "max_output_tokens" if name == "responses" else "max_tokens"
                for asked in (65, 32_000, 10**9):
                    assert (await s.post(path, **body, **{limit: asked})).status_code == 200
                    assert last().params.max_tokens == 64 - len(last().prompt_token_ids), name
            await s.post("/v1/chat/completions", messages=USER, max_completion_tokens=32_000)
            assert last().params.max_tokens == 64 - len(last().prompt_token_ids)
            await collect(s.grpc.stub.Generate(greedy(max_tokens=32_000)))
            assert last().params.max_tokens == 64 - len(last().prompt_token_ids) == 61
            await infer_stub(s.grpc).ModelInfer(infer("hi", sampling={"max_tokens": 32_000}))
            assert last().params.max_tokens == 61
            async for _ in vllm_stub(s.grpc).Generate(generate(max_tokens=32_000)):
                pass
            assert last().params.max_tokens == 61
            # What the client insists on does not shrink.
            error = await s.refused("/v1/completions", prompt="hi", max_tokens=32_000, min_tokens=62)
            assert (error["param"], "at most 61 fit" in error["message"]) == ("min_tokens", True)

    run(test())


def test_the_pool_limits_as_the_context_does():
    async def test():
        async with http_serving(FakeOptions(num_pages=3, page_size=16)) as s:  # 32 tokens, and one that is never kept
            await s.post("/v1/completions", prompt="hi", max_tokens=500)
            assert s.grpc.received(Submit)[-1].params.max_tokens == 30

    run(test())


# -- 16.0 -------------------------------------------------------------------------------------------------------------

KINDS = (CompletionRequest, ChatRequest, ResponsesRequest, TokenizeRequest, DetokenizeRequest)
REQUIRED = {"prompt": "x", "messages": USER, "input": "x", "tokens": [1]}


def members(kind: Any) -> tuple[Any, ...]:
    inner = kind.type if isinstance(kind, msgspec.inspect.Metadata) else kind
    return tuple(inner.types) if isinstance(inner, msgspec.inspect.UnionType) else (inner,)


def integer_fields() -> list[tuple[type[msgspec.Struct], str, bool]]:
    """(request, field, whether it is a list of them)"""
    found = []
    for kind in KINDS:
        info = msgspec.inspect.type_info(kind)
        assert isinstance(info, msgspec.inspect.StructType)
        for field in info.fields:
            for each in members(field.type):
                if isinstance(each, msgspec.inspect.IntType):
                    found.append((kind, field.name, False))
                elif isinstance(each, msgspec.inspect.ListType) and any(
                    isinstance(item, msgspec.inspect.IntType) for item in members(each.item_type)
                ):
                    found.append((kind, field.name, True))
    return found


@pytest.mark.parametrize(("kind", "field", "many"), integer_fields())
def test_every_integer_may_be_written_with_a_point(kind, field, many):
    required = {
        name: value
        for name, value in REQUIRED.items()
        if name in kind.__struct_fields__ and kind is not TokenizeRequest
    }
    body = {**required, field: [16.0, 1e2] if many else 16.0}
    request = msgspec.convert(with_whole_numbers(body, kind), kind)
    found = getattr(request, field)
    assert found == ([16, 100] if many else 16)
    assert {type(each) for each in (found if many else [found])} == {int}
    body[field] = [16.0, 16.5] if many else 16.5
    with pytest.raises(msgspec.ValidationError, match=r"Expected `.*int.*`, got `float`"):
        msgspec.convert(with_whole_numbers(body, kind), kind)


def test_there_are_integers_to_look_at():
    names = {(kind.__name__, name) for kind, name, _ in integer_fields()}
    assert {
        ("CompletionRequest", "max_tokens"),
        ("CompletionRequest", "prompt"),
        ("DetokenizeRequest", "tokens"),
    } <= names
    assert {("ChatRequest", "max_completion_tokens"), ("ResponsesRequest", "max_output_tokens")} <= names


def test_numbers_with_a_point_over_http_and_in_a_gateway():
    async def test():
        async with http_serving(gateways=BOTH) as s:
            for name, (path, body) in BODIES.items():
                limit = "max_output_tokens" if name == "responses" else "max_tokens"
                given = {limit: 4.0, "seed": 7.0, "top_k": 3.0, "stop_token_ids": [5.0], "temperature": 1}
                assert (await s.post(path, **body, **given)).status_code == 200
                submit = s.grpc.received(Submit)[-1]
                assert (submit.params.max_tokens, submit.params.top_k, submit.params.stop_token_ids) == (4, 3, (5,))
                assert type(submit.params.max_tokens) is int
                error = await s.refused(path, **body, **{**given, limit: 16.5})
                assert error["param"] == limit
                assert error["message"] == f"{limit} is 16.5; it must be an integer"
            assert (await s.complete(prompt=[104.0, 105.0], max_tokens=2.0))["usage"]["prompt_tokens"] == 2
            assert (await s.refused("/v1/completions", prompt=[104.0, 0.5]))["param"] == "prompt[1]"
            assert (await s.post("/detokenize", tokens=[104.0, 105.0])).json() == {"prompt": "hi"}
            await infer_stub(s.grpc).ModelInfer(infer("hi", sampling={"max_tokens": 3.0, "stop_token_ids": [5.0]}))
            assert s.grpc.received(Submit)[-1].params.max_tokens == 3
            assert s.grpc.received(Submit)[-1].params.stop_token_ids == (5,)

    run(test())


# -- empty and neutral ------------------------------------------------------------------------------------------------

ANYWHERE: tuple[dict[str, Any], ...] = (
    {"stop": []},
    {"stop": None},
    {"stop_token_ids": []},
    {"logit_bias": {}},
    {"bad_token_ids": []},
    {"user": ""},
    {"model": ""},
    {"request_id": ""},
    {"cache_salt": ""},
    {"min_tokens": 0},
    {"priority": 0},
)
TEXT: tuple[dict[str, Any], ...] = (
    {"n": 1},
    {"n": None},
    {"stream_options": {}},
    {"stream_options": None},
    {"stream_options": {"include_usage": None}},
    {"response_format": {"type": "text"}},
    {"length_penalty": 1.0},
)
TAKEN: dict[str, tuple[dict[str, Any], ...]] = {
    "completions": (*ANYWHERE, *TEXT, {"best_of": 1}, {"best_of": 1.0}, {"suffix": None}, {"echo": False}),
    "chat": (
        *(*ANYWHERE, *TEXT),
        *({"metadata": {}}, {"tools": []}, {"tools": [], "tool_choice": "none"}, {"functions": []}),
        *({"function_call": "auto"}, {"function_call": "none"}, {"documents": []}, {"chat_template_kwargs": {}}),
        *({"top_logprobs": 0}, {"logprobs": False, "top_logprobs": 0}, {"modalities": ["text"]}),
    ),
    "responses": (
        *ANYWHERE,
        *({"metadata": {}}, {"tools": []}, {"include": []}, {"text": {}}, {"reasoning": {}}, {"stream_options": {}}),
        *({"top_logprobs": 0}, {"chat_template_kwargs": {}}),
    ),
}


@pytest.mark.parametrize("name", TAKEN)
def test_what_says_nothing_is_taken(name):
    path, body = BODIES[name]
    limit = "max_output_tokens" if name == "responses" else "max_tokens"

    async def test():
        async with http_serving() as s:
            for more in TAKEN[name]:
                answer = await s.post(path, **body, **{limit: 2, **more})
                assert answer.status_code == 200, (more, answer.text)

    run(test())


def test_a_bias_is_as_large_as_it_can_matter():
    """vLLM: min(100, max(-100, bias))."""

    async def test():
        async with http_serving(gateways=BOTH) as s:
            await s.complete(logit_bias={"5": 1000, "6": -1e9, "7": 3})
            assert s.grpc.received(Submit)[-1].params.logit_bias == {5: 100.0, 6: -100.0, 7: 3.0}
            assert (await s.post("/tokenize", prompt="x", tools=[], chat_template_kwargs={})).status_code == 200

    run(test())


def test_without_a_tokenizer_what_needs_none_is_taken():
    async def test():
        async with http_serving(with_tokenizer=False) as s:
            neutral = {"stop": [], "skip_special_tokens": True, "include_stop_str_in_output": False}
            answer = await s.post("/v1/completions", prompt=[5], max_tokens=2, **neutral)
            assert answer.status_code == 200, answer.text
            assert (await s.refused("/v1/completions", prompt=[5], stop=["x"]))["param"] == "stop"

    run(test())


def test_minus_one_and_large_penalties_mean_what_they_mean_to_vllm():
    async def test():
        async with http_serving(FakeOptions(max_model_len=16)) as s:
            await s.complete(prompt="x" * 40, truncate_prompt_tokens=-1)
            submit = s.grpc.received(Submit)[-1]
            assert (len(submit.prompt_token_ids), submit.params.max_tokens) == (15, 1)
            assert (await s.refused("/v1/completions", prompt="x", truncate_prompt_tokens=-2))["param"]
            for _ in range(2):
                await s.complete(seed=-1, repetition_penalty=2.5, temperature=1)
            first, second = s.grpc.received(Submit)[-2:]
            assert first.seed != second.seed
            assert first.params.repetition_penalty == 2.5

    run(test())


def test_options_of_a_stream_that_say_nothing_equal_none():
    assert StreamOptions() == msgspec.json.decode(b'{"include_usage": null}', type=StreamOptions)
