"""The protocol's SamplingParams against what is declared of the parameters."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor

from jaxinfer.sampling_params import FIELDS
from protos.jaxinfer.v1 import inference_pb2 as pb

# Field -> (number, type). Numbers are a contract with clients that were built earlier: they never change.
WIRE = {
    "n": (1, "optional int32"),
    "temperature": (2, "optional double"),
    "top_p": (3, "optional double"),
    "top_k": (4, "optional int32"),
    "min_p": (5, "optional double"),
    "repetition_penalty": (6, "optional double"),
    "presence_penalty": (7, "optional double"),
    "frequency_penalty": (8, "optional double"),
    "seed": (9, "optional uint64"),
    "max_tokens": (10, "optional int32"),
    "min_tokens": (11, "optional int32"),
    "stop": (12, "repeated string"),
    "stop_token_ids": (13, "repeated uint32"),
    "include_stop_str_in_output": (14, "optional bool"),
    "ignore_eos": (15, "optional bool"),
    "logprobs": (16, "optional int32"),
    "prompt_logprobs": (17, "optional int32"),
    "logit_bias": (18, "map<uint32, double>"),
    "allowed_token_ids": (19, "TokenIds"),
    "bad_token_ids": (20, "repeated uint32"),
    "skip_special_tokens": (21, "optional bool"),
    "truncate_prompt_tokens": (22, "optional int32"),
    "structured_outputs": (23, "StructuredOutputs"),
    "thinking_token_budget": (24, "optional int32"),
}
# Kind of a parameter -> the types that can carry it.
CARRIES = {
    "integer": {"optional int32", "optional uint64"},
    "number": {"optional double"},
    "boolean": {"optional bool"},
    "strings": {"repeated string"},
    "token_ids": {"repeated uint32", "TokenIds"},
    "logit_bias": {"map<uint32, double>"},
    "structured": {"StructuredOutputs"},
}
_NAMES = {
    getattr(FieldDescriptor, f"TYPE_{name.upper()}"): name
    for name in ("int32", "uint32", "uint64", "double", "bool", "string")
}


def spelled(field: FieldDescriptor) -> str:
    """The field's type as the .proto writes it."""
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        key, value = (message.fields_by_name[part] for part in ("key", "value"))
        return f"map<{_NAMES[key.type]}, {_NAMES[value.type]}>"
    if message is not None:
        return str(message.name)
    several = not field.has_presence  # every single value here has it
    return f"{'repeated' if several else 'optional'} {_NAMES[field.type]}"


def test_the_message_is_as_it_was_published() -> None:
    found = {field.name: (field.number, spelled(field)) for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert found == WIRE


def test_the_message_has_every_parameter_in_order() -> None:
    assert [field.name for field in pb.SamplingParams.DESCRIPTOR.fields] == list(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_the_type_carries_the_parameter(name: str) -> None:
    declared, (_, kind) = FIELDS[name], WIRE[name]
    assert kind in CARRIES[declared.kind]
    # Whether "left out" differs from a value: an empty list is no value of its own unless None is one, too.
    assert (kind == "TokenIds") == (declared.kind == "token_ids" and declared.optional)
    if declared.high is not None and declared.high > 2**31 - 1:
        assert kind == "optional uint64"
