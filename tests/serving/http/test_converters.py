"""The converters: what becomes of messages, items, tools, prompts and log-probabilities."""

from __future__ import annotations

import json

import msgspec
import pytest

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import FIELD_NAMES
from jaxinfer.text import IncrementalDetokenizer
from jaxinfer.text.answers import OutputParserNames
from serving.http import chat_input, responses_input, responses_tools
from serving.http.answers import kept_tokens, new_call_id, reasoning_begun
from serving.http.convert import completion, sampling
from serving.http.decode import decode
from serving.http.models import CompletionRequest
from serving.http.response_turn import ResponseTurn
from serving.http.responses_models import ResponsesRequest
from tests.serving.harness import run, tokenizer
from tests.serving.http.harness import http_serving, says


def items(*given: dict, **more) -> list[dict]:
    request = decode(msgspec.json.encode({"input": list(given), **more}), ResponsesRequest)
    return responses_input._messages(request, ResponseTurn(None, ""))


def test_what_says_nothing_disappears():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [
        {"role": "developer", "content": parts, "name": None},
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None,
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]  # fmt: skip
    assert chat_input.messages(given) == [
        {"role": "developer", "content": parts},
        {"role": "assistant", "content": "",
         "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "c", "tool_call_id": "1"},
    ]  # fmt: skip


def test_items_of_one_answer_are_one_message():
    call = {
        "type": "function_call",
        "call_id": "1",
        "name": "f",
        "arguments": "{}",
        "id": "fc_1",
        "status": "completed",
    }
    text = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hm"}], "id": "m"}
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "so"}], "summary": []}
    output = {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "42"}]}
    function = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert items({"role": "user", "content": "x"}, thought, text, call, {**call, "call_id": "2"}, output) == [
        {"role": "user", "content": "x"},
        {
            "role": "assistant",
            "reasoning_content": "so",
            "content": "hm",
            "tool_calls": [function, {**function, "id": "2"}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    assert items({"type": "reasoning", "summary": []}, {"role": "user", "content": "x"}, instructions="y") == [
        {"role": "system", "content": "y"},
        {"role": "user", "content": "x"},
    ]


def test_tools_in_both_shapes_are_the_same_to_a_template():
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": False}
    kept = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    expected = [{"type": "function", "function": kept}]
    assert chat_input.tools([{"type": "function", "function": function}]) == expected
    assert responses_tools.functions([{"type": "function", **function}]) == expected
    assert chat_input.tools(None) == []


def test_every_sampling_field_is_converted():
    """What SamplingParams can do, a client of this server can ask for."""
    values = {
        "n": 2,
        "temperature": 0.5,
        "top_p": 0.5,
        "top_k": 5,
        "min_p": 0.5,
        "repetition_penalty": 2.0,
        "presence_penalty": 1.0,
        "frequency_penalty": -1.0,
        "seed": 7,
        "min_tokens": 3,
        "prompt_logprobs": 0,
        "stop_token_ids": [1],
        "allowed_token_ids": [2],
        "bad_token_ids": [3],
        "truncate_prompt_tokens": 4,
        "include_stop_str_in_output": True,
        "ignore_eos": False,
        "skip_special_tokens": False,
        "structured_outputs": {"regex": "a"},
    }
    request = CompletionRequest(prompt="x", **values, stop="y", logit_bias={"8": 1.5})
    assert sampling(request) == {**values, "stop": ("y",), "logit_bias": {8: 1.5}}
    elsewhere = {"max_tokens": 9, "logprobs": 2}
    (asked,) = completion(CompletionRequest(prompt="x", **values, **elsewhere))
    assert asked.sampling == {**values, **elsewhere}
    assert {*values, *elsewhere, "stop", "logit_bias", "thinking_token_budget"} == set(FIELD_NAMES)  # a chat's


def test_ids_of_calls():
    assert len({new_call_id(OutputParserNames("hermes")) for _ in range(50)}) == 50
    ids = [new_call_id(OutputParserNames("mistral")) for _ in range(50)]
    assert all(len(each) == 9 and each.isalnum() for each in ids)


@pytest.mark.parametrize("stream", [False, True])
def test_echo_scores_a_prompt_without_generating(stream):
    """As evaluation harnesses ask: max_tokens 0, the prompt's log-probabilities."""

    async def test():
        async with http_serving() as s:
            request = {
                "prompt": ["ab", "cd"],
                "max_tokens": 0,
                "echo": True,
                "logprobs": 1,
                "add_special_tokens": False,
            }
            if stream:
                events = await s.events("/v1/completions", **request, stream_options={"include_usage": True})
                assert events.pop() == "[DONE]"
                usage = events.pop()["usage"]
                choices = sorted((event["choices"][0] for event in events), key=lambda choice: choice["index"])
            else:
                answer = (await s.post("/v1/completions", **request)).json()
                usage, choices = answer["usage"], answer["choices"]
            assert [choice["text"] for choice in choices] == ["ab", "cd"]
            assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
            assert choices[1]["logprobs"] == {
                "tokens": ["c", "d"], "token_logprobs": [None, -0.5], "text_offset": [0, 1],
                "top_logprobs": [None, {"d": -0.5}],
            }  # fmt: skip
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (4, 0)

    run(test())


@pytest.mark.parametrize(
    ("logprobs", "prompt_logprobs", "right"),
    [(2, None, 2), (2, 5, 5), (5, 2, 5), (0, None, 0), (-1, None, -1), (-1, 3, -1), (3, -1, -1), (0, -1, -1)],
)
def test_echo_asks_for_the_larger_number_and_minus_one_is_all(logprobs, prompt_logprobs, right):
    body = {"prompt": "ab", "echo": True, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    (request,) = completion(decode(msgspec.json.encode(body), CompletionRequest))
    assert (request.sampling["logprobs"], request.sampling["prompt_logprobs"]) == (logprobs, right)


def test_echo_gives_what_the_model_saw():
    async def test():
        async with http_serving() as s:
            cut = await s.complete(prompt="hello", echo=True, truncate_prompt_tokens=3, max_tokens=2)  # BOS stays
            assert cut["choices"][0]["text"] == "loab"
            ids = await s.complete(prompt=[256, 104, 105], echo=True, max_tokens=2)
            assert ids["choices"][0]["text"] == "hiab"
            whole = await s.complete(prompt=[256, 104], echo=True, max_tokens=1, skip_special_tokens=False)
            assert whole["choices"][0]["text"] == "<s>ha"

    run(test())


def test_defaults_of_max_tokens_are_openais_and_vllms():
    async def test():
        async with http_serving() as s:
            await s.post("/v1/completions", prompt="x")
            await s.post("/v1/completions", prompt="x", max_tokens=None)
            await s.post("/v1/completions", prompt="x", min_tokens=20)
            await s.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
            told = [submit.params.max_tokens for submit in s.grpc.received(Submit)]
            assert told[:3] == [16, 16, 4094]  # null is 16, too: vLLM's normalize_null_max_tokens
            assert told[3] > 4000
        async with http_serving(sampling_defaults={"max_tokens": 7, "top_k": 3}) as s:
            await s.post("/v1/completions", prompt="x")
            assert s.grpc.received(Submit)[-1].params.max_tokens == 16  # vLLM's own default comes before the model's
            await s.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}])
            assert s.grpc.received(Submit)[-1].params.max_tokens == 7
            assert s.grpc.received(Submit)[-1].params.top_k == 3

    run(test())


def test_streams_add_up_to_the_whole_answer():
    text = '<think>a\nb</think>\n\nX <b>y</b> <tool_call>{"name": "f", "arguments": {"q": "😀"}}</tool_call>'

    async def test():
        async with http_serving(says(text), tool_call_parser="hermes", reasoning_parser="think") as s:
            tools = [{"type": "function", "function": {"name": "f"}}]
            settings = {"tools": tools, "n": 2, "max_tokens": None, "logprobs": True, "return_token_ids": True}
            whole = (await s.chat(**settings))["choices"]
            request = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, **settings}
            events = await s.events("/v1/chat/completions", **request)
            for choice in whole:
                own = [e["choices"][0] for e in events[:-1] if e["choices"][0]["index"] == choice["index"]]
                deltas = [each["delta"] for each in own]
                message = choice["message"]
                assert "".join(delta.get("content") or "" for delta in deltas) == message["content"] == "X <b>y</b>"
                assert "".join(delta.get("reasoning", "") for delta in deltas) == message["reasoning"] == "a\nb"
                calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
                (expected,) = message["tool_calls"]
                assert calls[0]["function"]["name"] == expected["function"]["name"]
                arguments = "".join(call["function"].get("arguments", "") for call in calls)
                assert arguments == expected["function"]["arguments"] == '{"q": "😀"}'
                tokens = [token for each in own if each["logprobs"] for token in each["logprobs"]["content"]]
                assert tokens == choice["logprobs"]["content"]
                assert [token for each in own for token in each.get("token_ids", ())] == choice["token_ids"]
                assert [each["finish_reason"] for each in own if each["finish_reason"]] == ["tool_calls"]

    run(test())


def test_the_reasoning_that_a_prompt_opens():
    form = OutputParserNames("none", "think")
    for prompt, begun in (("<assistant><think>\n", True), ("<think>\n\n</think>\n\n", False), ("", False)):
        ids = tuple(tokenizer().encode(prompt))
        assert reasoning_begun(form, tokenizer(), ids) is begun
        assert not reasoning_begun(OutputParserNames(), tokenizer(), ids)
    bos, eos = (256,), (257,)  # the only special tokens here
    for begin, text, begun in (
        (bos, "[INST] <think> [/INST]", False),  # the user's word
        ((*b"<user><think>", *eos), "<assistant>\n", False),
        ((*b"<user>hi", *eos), "<think>\nOkay,", True),
        ((*b"<user>hi", *eos), "<think>\nOkay</think>So", False),
    ):
        ids = (*begin, *text.encode())
        assert reasoning_begun(form, tokenizer(), ids) is begun, text


def test_reasoning_items_in_all_spellings():
    text = [{"type": "reasoning_text", "text": "so"}]
    user = {"role": "user", "content": "x"}
    message = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hm"}]}
    for reasoning in (
        {"content": text},
        {"content": text, "summary": [], "encrypted_content": None, "id": None, "status": None},
        {"content": text, "encrypted_content": "opaque"},
        {"content": None, "summary": [{"type": "summary_text", "text": "so"}]},
        {"content": [], "summary": [{"type": "summary_text", "text": "so"}], "encrypted_content": ""},
    ):
        found = items(user, {"type": "reasoning", **reasoning}, message)
        assert found[1:] == [{"role": "assistant", "reasoning_content": "so", "content": "hm"}]
    for nothing in ({}, {"content": None}, {"content": []}, {"summary": []}, {"content": "", "summary": None}):
        assert items(user, {"type": "reasoning", **nothing}, message)[1:] == [{"role": "assistant", "content": "hm"}]


def test_text_behind_a_call_belongs_to_the_same_message():
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": ""}
    text = {"type": "message", "role": "assistant", "content": "hm"}
    output = {"type": "function_call_output", "call_id": "1", "output": None}
    function = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert items(text, call, text, output) == [
        {"role": "assistant", "content": "hm\nhm", "tool_calls": [function]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]
    assert items(text, text) == [{"role": "assistant", "content": "hm"}] * 2  # two of the client's own


def test_special_tokens_that_parsers_need_stay_in_the_text():
    class Special:
        def token_id(self, token: str) -> int | None:
            return {"[TOOL_CALLS]": 257}.get(token)

    assert kept_tokens(OutputParserNames("mistral"), Special(), tools=True) == {257}
    assert kept_tokens(OutputParserNames("mistral"), Special(), tools=False) == frozenset()
    text = IncrementalDetokenizer(tokenizer(), (), kept_tokens={257})
    assert text.push([256, 97, 257, 98]) + text.finish() == "a</s>b"


def test_models_and_tokens():
    async def test():
        async with http_serving() as s:
            assert (await s.http.get("/version")).json()["version"]
            found = (await s.post("/tokenize", prompt="hi", return_token_strs=True)).json()
            assert found == {
                "count": 3,
                "max_model_len": 4096,
                "tokens": [256, 104, 105],
                "token_strs": ["<s>", "h", "i"],
            }
            plain = (await s.post("/tokenize", prompt="hi", add_special_tokens=False)).json()
            assert plain["tokens"] == [104, 105]
            assert (await s.post("/detokenize", tokens=found["tokens"])).json() == {"prompt": "<s>hi"}
            cut = await s.post("/detokenize", tokens=found["tokens"], skip_special_tokens=True)
            assert cut.json() == {"prompt": "hi"}
            chat = {"messages": [{"role": "user", "content": "hi"}]}
            tokens = (await s.post("/tokenize", **chat)).json()["tokens"]
            assert bytes(tokens) == b"<user>hi;<assistant>"
            usage = (await s.chat("hi"))["usage"]
            assert usage["prompt_tokens"] == len(tokens)
            for change, param in (
                ({"prompt": "x", **chat}, "prompt"),
                ({}, "prompt"),
                ({"prompt": "x", "tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
                ({**chat, "add_special_tokens": True}, "add_special_tokens"),
                ({**chat, "chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
            ):
                assert (await s.refused("/tokenize", **change))["param"] == param
            assert (await s.refused("/detokenize", tokens=[260]))["param"] == "tokens"
            assert (await s.post("/tokenize", prompt="x", model="other")).status_code == 404
            document = json.loads((await s.http.get("/openapi.json")).text)
            assert document["openapi"] == "3.1.0"

    run(test())
