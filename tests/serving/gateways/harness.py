"""A server with both gateway services over the fake engine, and what their clients write."""

from __future__ import annotations

import json
from typing import Any

from smg_grpc_proto import vllm_engine_pb2 as vllm_pb

from protos.open_inference import grpc_service_pb2 as infer_pb
from serving.gateways.services import GatewayConfig
from serving.grpc_server.names import SERVICES

BOTH = GatewayConfig(tuple(SERVICES))


def generate(text: str = "hi", *, stream: bool = True, **sampling: Any) -> vllm_pb.GenerateRequest:
    """A greedy request of VllmEngine, as a gateway writes it."""
    given = {"temperature": 0.0, "top_p": 1.0, "max_tokens": 8, "skip_special_tokens": True, "n": 1, **sampling}
    params = vllm_pb.SamplingParams(spaces_between_special_tokens=True, **given)
    return vllm_pb.GenerateRequest(text=text, stream=stream, sampling_params=params)


def infer(text: str | None = "hi", *, raw: bool = False, **fields: Any) -> infer_pb.ModelInferRequest:
    """A greedy request of the open inference service. fields: of the message, inputs by name, and `sampling`."""
    inputs = {
        name: fields.pop(name)
        for name in list(fields)
        if name not in infer_pb.ModelInferRequest.DESCRIPTOR.fields_by_name and name != "sampling"
    }
    sampling = {"temperature": 0, "max_tokens": 8, **fields.pop("sampling", {})}
    request = infer_pb.ModelInferRequest(**{"model_name": "fake", **fields})
    given = {"text_input": text, "sampling_parameters": json.dumps(sampling), **inputs}
    for name, value in given.items():
        if value is not None:
            add_input(request, name, value, raw=raw)
    return request


def add_input(request: infer_pb.ModelInferRequest, name: str, value: Any, *, raw: bool = False) -> None:
    """value: text, a boolean or a list of token ids."""
    if isinstance(value, bool):
        tensor, data = request.inputs.add(name=name, datatype="BOOL", shape=[1]), bytes([value])
        field, values = "bool_contents", [value]
    elif isinstance(value, str):
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[1])
        data = len(value.encode()).to_bytes(4, "little") + value.encode()
        field, values = "bytes_contents", [value.encode()]
    else:
        tensor = request.inputs.add(name=name, datatype="INT32", shape=[len(value)])
        data = b"".join(token.to_bytes(4, "little", signed=True) for token in value)
        field, values = "int_contents", value
    if raw:
        request.raw_input_contents.append(data)
    else:
        getattr(tensor.contents, field).extend(values)


def text_output(response: infer_pb.ModelInferResponse) -> list[str]:
    assert response.outputs[0].name == "text_output"
    return [value.decode() for value in response.outputs[0].contents.bytes_contents]
