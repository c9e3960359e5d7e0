"""No field of a request is ignored: each one changes what the engine or the client gets, or is refused by its name.

The walk is over the message's descriptor, so a field that is added to the .proto without an effect fails here.
"""

from __future__ import annotations

import dataclasses

import grpc

from jaxinfer.messages import EngineStats, Submit
from jaxinfer.sampling_params import FIELD_NAMES
from protos.jaxinfer.v1 import inference_pb2 as pb
from tests.fakes import FakeOptions
from tests.serving.harness import Running, collect, run, serving

BASE = pb.GenerateRequest(
    request_id="base",
    text="ab",
    sampling=pb.SamplingParams(temperature=0.5, seed=1, max_tokens=6, stop=["x"]),
)
CHAT = pb.GenerateRequest(
    request_id="base",
    chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="u")]),
    sampling=pb.SamplingParams(temperature=0.5, seed=1, max_tokens=6),
)

STRUCTURAL_TAG = '{"structures": [{"begin": "<f>", "schema": {}, "end": "</f>"}], "triggers": ["<f"]}'
# Path of every leaf -> a value that differs from BASE's (CHAT's, below chat) and from the default.
VALUES = {
    "request_id": "other",
    "text": "cd",
    "token_ids.ids": [4, 5],
    "add_special_tokens": False,
    "priority": -3,
    "cache_salt": "tenant",
    "final_only": True,
    "model": "another",
    "session_id": "talk",
    "prompt_cache_retention": "24h",
    "chat.messages.role": "system",
    "chat.messages.content": "other",
    "chat.messages.extra_json": '{"name": "Ann"}',
    "chat.add_generation_prompt": False,
    "chat.tools_json": ['{"type": "function"}'],
    "chat.template": "unheard-of",
    "chat.template_variables_json": '{"style": "terse"}',
    "sampling.n": 2,
    "sampling.temperature": 0.75,
    "sampling.top_p": 0.5,
    "sampling.top_k": 9,
    "sampling.min_p": 0.125,
    "sampling.repetition_penalty": 1.5,
    "sampling.presence_penalty": 0.5,
    "sampling.frequency_penalty": 0.25,
    "sampling.seed": 2,
    "sampling.max_tokens": 5,
    "sampling.min_tokens": 2,
    "sampling.stop": ["y"],
    "sampling.stop_token_ids": [7],
    "sampling.include_stop_str_in_output": True,
    "sampling.ignore_eos": True,
    "sampling.logprobs": 1,
    "sampling.prompt_logprobs": 1,
    "sampling.logit_bias": {3: 1.5},
    "sampling.allowed_token_ids.ids": [8],
    "sampling.bad_token_ids": [9],
    "sampling.skip_special_tokens": False,
    "sampling.truncate_prompt_tokens": 1,
    "sampling.thinking_token_budget": 3,
    "sampling.structured_outputs.json": '{"type": "object"}',
    "sampling.structured_outputs.regex": "[a-z]+",
    "sampling.structured_outputs.choice.choices": ["yes", "no"],
    "sampling.structured_outputs.grammar": 'root ::= "a"',
    "sampling.structured_outputs.json_object": True,
    "sampling.structured_outputs.structural_tag": STRUCTURAL_TAG,
    # Alone these ask for nothing; what they do is in tests/jaxinfer/constraints.
    "sampling.structured_outputs.disable_any_whitespace": True,
    "sampling.structured_outputs.disable_additional_properties": True,
    "sampling.structured_outputs.whitespace_pattern": " ?",
}
_ALONE = "structured_outputs is []"
REFUSED = {
    "model": "model is 'another'",
    "chat.template": "template is 'unheard-of'",
    "sampling.thinking_token_budget": "thinking_token_budget is 3; this model's answers are not known to have",
    "sampling.structured_outputs.disable_any_whitespace": _ALONE,
    "sampling.structured_outputs.disable_additional_properties": _ALONE,
    "sampling.structured_outputs.whitespace_pattern": _ALONE,
}


def leaves(descriptor, prefix=""):
    for field in descriptor.fields:
        path = prefix + field.name
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from leaves(field.message_type, path + ".")
        else:
            yield path


def changed(path: str, value) -> pb.GenerateRequest:
    request = pb.GenerateRequest()
    request.CopyFrom(CHAT if path.startswith("chat.") else BASE)
    *parents, name = path.split(".")
    target = request
    for parent in parents:
        target = getattr(target, parent)
        if parent == "messages":
            target = target[0]
    if isinstance(value, list):
        del getattr(target, name)[:]
        getattr(target, name).extend(value)
    elif isinstance(value, dict):
        getattr(target, name).update(value)
    else:
        setattr(target, name, value)
    return request


async def outcome(s: Running, request: pb.GenerateRequest) -> tuple:
    """What the engine was sent and how the answer was cut, without what differs from call to call."""
    before = len(s.received(Submit))
    result = await collect(s.stub.Generate(request))
    (submit,) = s.received(Submit)[before:]
    client_id, _serial = submit.request_id.split("/")
    return submit._replace(request_id=client_id, arrival=0.0), len(result.deltas) == 1


def test_the_walk_covers_the_request():
    assert set(VALUES) == set(leaves(pb.GenerateRequest.DESCRIPTOR))


def test_sampling_fields_are_those_of_sampling_params():
    assert {field.name for field in pb.SamplingParams.DESCRIPTOR.fields} == set(FIELD_NAMES)


def test_every_field_takes_effect_or_is_refused_by_name():
    async def test():
        async with serving(FakeOptions(step_seconds=0.005)) as s:  # slow enough for more than one delta
            plain = {False: await outcome(s, BASE), True: await outcome(s, CHAT)}
            assert plain[False] == await outcome(s, BASE)  # the comparison below is not trivially unequal
            for path, value in VALUES.items():
                request = changed(path, value)
                assert request != BASE
                try:
                    got = await outcome(s, request)
                except grpc.aio.AioRpcError as error:
                    assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), path
                    assert REFUSED[path] in (error.details() or "")
                    continue
                assert path not in REFUSED
                assert got != plain[path.startswith("chat.")], path

    run(test())


def test_every_engine_counter_is_reported():
    async def test():
        async with serving() as s:
            await collect(s.stub.Generate(BASE))
            stats = await s.stub.GetStats(pb.GetStatsRequest())
            for field in dataclasses.fields(EngineStats):
                assert getattr(stats, field.name) == getattr(s.server.frontend.stats, field.name), field.name
            assert stats.steps > 0

    run(test())
