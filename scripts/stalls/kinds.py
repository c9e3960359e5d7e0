"""The worst request of each kind that a server takes, or that it must refuse soon."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.open_inference import grpc_service_pb2 as infer_pb
from stalls.model import FIRST_BYTE, MAX_MODEL_LEN, text

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
GENERATE, TOKENIZE, DETOKENIZE = (f"/jaxinfer.v1.Inference/{name}" for name in ("Generate", "Tokenize", "Detokenize"))
INFER, VLLM = "/inference.GRPCInferenceService/ModelInfer", "/vllm.grpc.engine.VllmEngine/Generate"
LIMIT = 16 << 20  # bytes of a body or a message: the server's default
_FULL = LIMIT - 4096
_SHORT: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


class Sent(NamedTuple):
    """path: of an HTTP endpoint, or of a gRPC method."""

    path: str
    data: bytes

    @property
    def over_grpc(self) -> bool:
        return self.path.count(".") > 0


@dataclass(frozen=True)
class Kind:
    """make: its request. times: sent at a time, by one client."""

    name: str
    make: Callable[[], Sent]
    times: int = 1


def _json(path: str, **body: Any) -> Sent:
    return Sent(path, json.dumps(body).encode())


def _words(tokens: int) -> str:
    """About so many tokens, and not more."""
    return text(tokens * 3)


def _many(path: str, before: bytes, item: bytes, after: bytes) -> Sent:
    """A body of the largest size, full of one value."""
    count = (_FULL - len(before) - len(after)) // (len(item) + 1)
    return Sent(path, before + b",".join([item] * count) + after)


def _tools() -> list[dict[str, Any]]:
    properties = {f"field_{i}": {"type": "string", "description": text(300, i)} for i in range(170)}
    parameters = {"type": "object", "properties": properties}
    return [{"type": "function", "function": {"name": f"f{i}", "parameters": parameters}} for i in range(128)]


def _conversation(count: int, characters: int) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text(characters, i % 7)} for i in range(count)]


def _logit_bias() -> dict[str, float]:
    return {str(300 + i): i % 7 - 3.0 for i in range(1024)}


def _stops() -> list[str]:
    return ["ab" * 400 + "a" * i + "b" for i in range(15)]


def _varint(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def _grpc_chat_of_nothing() -> Sent:
    """Millions of empty messages."""
    chat = b"\x0a\x00" * (_FULL // 2)
    tag = pb.GenerateRequest.DESCRIPTOR.fields_by_name["chat"].number << 3 | 2
    return Sent(GENERATE, bytes([tag]) + _varint(len(chat)) + chat)


def _generate(**fields: Any) -> Sent:
    sampling = pb.SamplingParams(temperature=0, max_tokens=4, **fields.pop("sampling", {}))
    return Sent(GENERATE, pb.GenerateRequest(sampling=sampling, **fields).SerializeToString())


def _chat(count: int, characters: int) -> pb.Chat:
    messages = _conversation(count, characters)
    return pb.Chat(messages=[pb.ChatMessage(role=m["role"], content=m["content"]) for m in messages])


def _infer(name: str, datatype: str, count: int, raw: bytes) -> Sent:
    request = infer_pb.ModelInferRequest(model_name="stalls", raw_input_contents=[raw])
    request.inputs.add(name=name, datatype=datatype, shape=[count])
    return Sent(INFER, request.SerializeToString())


def _infer_text(data: bytes) -> Sent:
    return _infer("text_input", "BYTES", 1, len(data).to_bytes(4, "little") + data)


def _vllm(**fields: Any) -> Sent:
    from smg_grpc_proto.generated import vllm_engine_pb2 as vllm

    if "ids" in fields:
        fields["tokenized"] = vllm.TokenizedInput(input_ids=fields.pop("ids"))
    params = vllm.SamplingParams(max_tokens=4, temperature=0)
    return Sent(VLLM, vllm.GenerateRequest(request_id="", sampling_params=params, **fields).SerializeToString())


_LONGEST = MAX_MODEL_LEN - 600  # tokens of a prompt that leaves room for an answer
_IDS = [300 + i % 20_000 for i in range(_LONGEST)]
_BYTES_AT_THE_END = [300] * 1000 + [FIRST_BYTE + 0xC3, FIRST_BYTE + 0xA9] * ((_LONGEST - 1000) // 2)


def kinds(*, bpe: bool) -> list[Kind]:
    """bpe: the tokenizer has 32,000 tokens; else those of the tests, and prompts are as long in bytes."""
    ids = _IDS if bpe else [97 + i % 26 for i in range(_LONGEST)]
    ends_in_bytes = _BYTES_AT_THE_END if bpe else [0xC3, 0xA9] * (_LONGEST // 2)
    long = {"prompt": ids, **_SHORT}

    def longest() -> str:
        return _words(_LONGEST) if bpe else text(_LONGEST)

    return [
        Kind("text of 2 MB", lambda: _json(COMPLETIONS, prompt=text(2_000_000), **_SHORT), 4),
        Kind("text of 16 MiB", lambda: _json(COMPLETIONS, prompt=text(1000) * (_FULL // 1000), **_SHORT), 2),
        Kind("text, cut", lambda: _json(COMPLETIONS, prompt=text(4_000_000), truncate_prompt_tokens=100, **_SHORT)),
        Kind("longest text", lambda: _json(COMPLETIONS, prompt=longest(), **_SHORT), 4),
        Kind("1024 texts", lambda: _json(COMPLETIONS, prompt=[text(3000, i % 9) for i in range(1024)], **_SHORT)),
        Kind("1024 short texts", lambda: _json(COMPLETIONS, prompt=["a"] * 1024, max_tokens=1)),
        Kind("longest token ids", lambda: _json(COMPLETIONS, **long), 4),
        Kind("too many token ids", lambda: _many(COMPLETIONS, b'{"prompt":[', b"12345", b"]}")),
        Kind("lists of token ids", lambda: _many(COMPLETIONS, b'{"prompt":[', b"[1]", b"]}")),
        Kind("empty messages", lambda: _many(CHAT, b'{"messages":[', b"{}", b"]}")),
        Kind("objects", lambda: _many(CHAT, b'{"messages":[', b'{"a":{}}', b"]}")),
        Kind("unknown field", lambda: Sent(COMPLETIONS, b'{"prompt":"a","' + b"x" * _FULL + b'":1}')),
        Kind("stop strings", lambda: _json(COMPLETIONS, prompt="a", max_tokens=300, temperature=0, stop=_stops()), 4),
        Kind("million stops", lambda: _many(COMPLETIONS, b'{"prompt":"a","stop":[', b'"ab"', b"]}")),
        Kind("top 20 of 16", lambda: _json(CHAT, messages=_conversation(1, 9), n=16, max_tokens=200, temperature=0,
                                           logprobs=True, top_logprobs=20)),
        Kind("top 20 of 16, stream", lambda: _json(CHAT, messages=_conversation(1, 9), n=16, max_tokens=200,
                                                   temperature=0, logprobs=True, top_logprobs=20, stream=True)),
        Kind("prompt scored", lambda: _json(COMPLETIONS, **{**long, "prompt": ids[:8000]}, echo=True, logprobs=20)),
        Kind("n 64, long prompt", lambda: _json(COMPLETIONS, **long, n=64)),
        Kind("n 64, echo", lambda: _json(COMPLETIONS, **long, n=64, echo=True)),
        Kind("n 64, ends in bytes", lambda: _json(COMPLETIONS, **{**long, "prompt": ends_in_bytes}, n=64)),
        Kind("128 tools", lambda: _json(CHAT, messages=_conversation(1, 9), tools=_tools(), **_SHORT)),
        Kind("4096 messages", lambda: _json(CHAT, messages=_conversation(4096, 20), **_SHORT), 2),
        Kind("4096 long messages", lambda: _json(CHAT, messages=_conversation(4096, 3500), **_SHORT)),
        Kind("one message of 8 MB", lambda: _json(CHAT, messages=_conversation(1, 8_000_000), **_SHORT)),
        Kind("documents", lambda: _json(CHAT, messages=_conversation(1, 9), **_SHORT,
                                        documents=[{"title": "t", "text": text(1000, i % 7)} for i in range(8000)])),
        Kind("logit bias", lambda: _json(COMPLETIONS, prompt="a", logit_bias=_logit_bias(), n=64, **_SHORT), 4),
        Kind("million biases", lambda: Sent(COMPLETIONS, json.dumps(
            {"prompt": "a", "logit_bias": {str(i): 1 for i in range(1_200_000)}}).encode())),
        Kind("responses", lambda: _json(RESPONSES, input=_conversation(4096, 3500), max_output_tokens=4)),
        Kind("tokenize 2 MB", lambda: _json("/tokenize", prompt=text(2_000_000), return_token_strs=True)),
        Kind("tokenize 8 MB", lambda: _json("/tokenize", prompt=text(1000) * 8000)),
        Kind("detokenize", lambda: _many("/detokenize", b'{"tokens":[', b"97" if not bpe else b"12345", b"]}")),
        Kind("gRPC text of 16 MiB", lambda: _generate(text=text(1000) * (_FULL // 1000)), 2),
        Kind("gRPC longest text", lambda: _generate(text=longest()), 4),
        Kind("gRPC token ids", lambda: _generate(token_ids=pb.TokenIds(ids=[97] * (_FULL - 100)))),
        Kind("gRPC n 64", lambda: _generate(token_ids=pb.TokenIds(ids=ids), sampling={"n": 64})),
        Kind("gRPC chat", lambda: _generate(chat=_chat(4096, 3500))),
        Kind("gRPC empty messages", _grpc_chat_of_nothing),
        Kind("gRPC unknown fields", lambda: Sent(GENERATE, b"\xf8\x7f\x01" * (_FULL // 3))),
        Kind("gRPC stop ids", lambda: _generate(text="a", sampling={"stop_token_ids": [97] * (_FULL - 100)})),
        Kind("gRPC tokenize", lambda: Sent(TOKENIZE, pb.TokenizeRequest(text=text(4_000_000)).SerializeToString())),
        Kind("gRPC detokenize", lambda: Sent(DETOKENIZE, pb.DetokenizeRequest(token_ids=ids * 60).SerializeToString())),
        Kind("KServe text", lambda: _infer_text(text(4_000_000).encode())),
        Kind("KServe token ids", lambda: _infer("input_ids", "INT32", 4_000_000, b"\x61\0\0\0" * 4_000_000)),
        Kind("vLLM text", lambda: _vllm(text=text(4_000_000))),
        Kind("vLLM token ids", lambda: _vllm(ids=[97] * 4_000_000)),
    ]  # fmt: skip
