"""One rule, every server: what cannot be served is refused in the same words by gRPC, HTTP and the gateways' services,
each under the field's name in its own protocol, and nothing of it reaches the engine."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from smg_grpc_proto import vllm_engine_pb2 as vllm_pb
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc

from jaxinfer.messages import Submit
from jaxinfer.sampling_params import FIELD_NAMES
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.open_inference import grpc_service_pb2_grpc as infer_grpc
from tests.fakes import VOCAB_SIZE, FakeOptions
from tests.serving.filters.test_filters import HERE as FILTERS
from tests.serving.gateways.harness import BOTH, generate, infer
from tests.serving.harness import collect, run, status
from tests.serving.http.harness import HttpServer, http_serving

INVALID = "INVALID_ARGUMENT"
# HTTP's answers as gRPC's names of statuses.
CODES = {
    (400, None): INVALID,
    (400, "content_filter"): "FAILED_PRECONDITION",
    (404, "model_not_found"): "NOT_FOUND",
    (409, "duplicate_request_id"): "ALREADY_EXISTS",
    (429, "server_full"): "RESOURCE_EXHAUSTED",
    (503, "server_unavailable"): "UNAVAILABLE",
}


@dataclass(frozen=True)
class Ask:
    """A request as every server's clients can write it. ids: instead of the text. sampling: by the shared names."""

    text: str = "ab"
    ids: tuple[int, ...] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


class Told(NamedTuple):
    """The status by gRPC's name, and the sentence."""

    code: str
    message: str


Send = Callable[[HttpServer, Ask], Awaitable[Told]]


async def _told(call: Any) -> Told:
    error = await status(call)
    return Told(error.code().name, str(error.details()))


async def _grpc(s: HttpServer, ask: Ask) -> Told:
    given = dict(ask.sampling)
    if "allowed_token_ids" in given:
        given["allowed_token_ids"] = pb.TokenIds(ids=given["allowed_token_ids"])
    prompt: dict[str, Any] = {"text": ask.text} if ask.ids is None else {"token_ids": pb.TokenIds(ids=ask.ids)}
    request = pb.GenerateRequest(**prompt, sampling=pb.SamplingParams(**given), **ask.fields)
    return await _told(s.grpc.stub.Generate(request))


def _http(path: str, prompt: Callable[[Ask], dict[str, Any]], names: Mapping[str, str]) -> Send:
    async def send(s: HttpServer, ask: Ask) -> Told:
        given = {names.get(name, name): value for name, value in ask.sampling.items()}
        if "logit_bias" in given:
            given["logit_bias"] = {str(token): value for token, value in given["logit_bias"].items()}
        if "top_logprobs" in given:
            given |= {"logprobs": True} if path.startswith("chat") else {"include": ["message.output_text.logprobs"]}
        answer = await s.post("/v1/" + path, **prompt(ask), **given, **ask.fields)
        error = answer.json()["error"]
        code = CODES.get((answer.status_code, error["code"]), str(answer.status_code))
        if code == INVALID and error["param"] is not None:
            assert error["message"].startswith(f"{error['param']} is "), error
        return Told(code, error["message"])

    return send


async def _vllm(s: HttpServer, ask: Ask) -> Told:
    given = dict(ask.sampling)
    request = generate(ask.text, **given.pop("structured_outputs", {}), **given)
    if ask.ids is not None:
        request.tokenized.CopyFrom(vllm_pb.TokenizedInput(input_ids=ask.ids))
    request.request_id = ask.fields.get("request_id", "")
    return await _told(vllm_grpc.VllmEngineStub(s.grpc.channel).Generate(request))


async def _kserve(s: HttpServer, ask: Ask) -> Told:
    fields = {{"model": "model_name", "request_id": "id"}[name]: value for name, value in ask.fields.items()}
    request = infer(ask.text if ask.ids is None else None, sampling=dict(ask.sampling), **fields)
    if ask.ids is not None:
        request = infer(None, input_ids=list(ask.ids), sampling=dict(ask.sampling), **fields)
    return await _told(infer_grpc.GRPCInferenceServiceStub(s.grpc.channel).ModelInfer(request))


class Server(NamedTuple):
    """names: the shared names of fields -> this protocol's. lacks: fields and kinds of prompt that it has not, or whose
    zero means that they are unset."""

    send: Send
    names: Mapping[str, str]
    lacks: frozenset[str]


def _lacks(*names: str) -> frozenset[str]:
    return frozenset(names)


REGEX = "structured_outputs.regex"
_CHAT = {"logprobs": "top_logprobs", "prompt": "messages"}
_RESPONSES = {"logprobs": "top_logprobs", "prompt": "input", "max_tokens": "max_output_tokens"}
_KSERVE = {name: f"sampling_parameters.{name}" for name in (*FIELD_NAMES, REGEX)}
SERVERS: dict[str, Server] = {
    "grpc": Server(_grpc, {}, _lacks()),
    "completions": Server(
        _http("completions", lambda ask: {"prompt": ask.text if ask.ids is None else ask.ids}, {}),
        {"token_ids": "prompt"},
        _lacks("clamped", "no ids", "thinking_token_budget"),
    ),
    "chat": Server(
        _http("chat/completions", lambda ask: {"messages": [{"role": "user", "content": ask.text}]}, _CHAT),
        _CHAT,
        _lacks("ids", "clamped"),
    ),
    "responses": Server(
        _http("responses", lambda ask: {"input": ask.text}, _RESPONSES),
        _RESPONSES,
        _lacks("ids", "clamped", "n", "prompt_logprobs", "thinking_token_budget"),
    ),
    "vllm": Server(
        _vllm,
        {"token_ids": "tokenized.input_ids", "prompt": "input", REGEX: "regex"},
        _lacks(
            *("zero", "negative", "clamped", "allowed_token_ids", "bad_token_ids", "model", "cache_salt", "priority"),
            "thinking_token_budget",
        ),
    ),
    "kserve": Server(
        _kserve,
        {**_KSERVE, "token_ids": "input_ids", "prompt": "text_input", "model": "model_name", "request_id": "id"},
        _lacks("clamped", "prompt_logprobs", "cache_salt", "priority", "truncate_prompt_tokens"),
    ),
}
EACH = pytest.mark.parametrize("name", SERVERS)


class Rule(NamedTuple):
    """field: that is named. words: what is said of it, behind its name. needs: what a server must have, beside it."""

    field: str
    ask: Ask
    words: tuple[str, ...]
    needs: tuple[str, ...] = ()


def _sampling(words: tuple[str, ...], *needs: str, **sampling: Any) -> Rule:
    return Rule(next(iter(sampling)), Ask(sampling=sampling), words, needs)


RULES: dict[str, Rule] = {
    "prompt too long": Rule("prompt", Ask("a" * 120), ("is '1", "tokens'", "at most 95 fit the context of 96")),
    "empty token prompt": Rule("prompt", Ask(ids=()), ("is ''", "at least one token"), ("ids", "no ids")),
    "token id": Rule("token_ids", Ask(ids=(1, VOCAB_SIZE)), ("is 260", "from 0 to 259"), ("ids",)),
    "n 0": _sampling(("is 0", "from 1 to 64"), "zero", n=0),
    "n 65": _sampling(("is 65", "from 1 to 64"), n=65),
    "top_p": _sampling(("is 1.5", "at most 1"), top_p=1.5),
    "top_p 0": _sampling(("is 0", "above 0"), "zero", top_p=0.0),
    "temperature": _sampling(("is -1", "from 0 to 100"), temperature=-1.0),
    "top_k": _sampling(("is -2", "-1"), "negative", top_k=-2),
    "min_p": _sampling(("is 2", "from 0 to 1"), min_p=2.0),
    "repetition_penalty": _sampling(("is 0", "above 0"), "zero", repetition_penalty=0.0),
    "presence_penalty": _sampling(("is 2.5", "from -2 to 2"), presence_penalty=2.5),
    "frequency_penalty": _sampling(("is -2.5", "from -2 to 2"), frequency_penalty=-2.5),
    "max_tokens 0": _sampling(("is 0", "a positive integer"), max_tokens=0),
    "min_tokens": _sampling(("is -1", "0 or more"), "negative", min_tokens=-1),
    "min over max": _sampling(("is 5", "_tokens 4"), min_tokens=5, max_tokens=4),
    "min over context": _sampling(("is 94", "fit the context of 96"), min_tokens=94, max_tokens=95),
    "logprobs": _sampling(("is 21", "from 0 to 20"), logprobs=21),
    "prompt_logprobs": _sampling(("is 21", "from 0 to 20"), prompt_logprobs=21),
    "stop empty": _sampling(("is ''", "1 to 1024 characters"), stop=[""]),
    "stop many": _sampling(("is ", "at most 16"), stop=["x"] * 17),
    "stop_token_ids": _sampling(("is 260", "from 0 to 259"), stop_token_ids=[VOCAB_SIZE]),
    "stop_token_ids many": _sampling(("is ", "at most 64"), stop_token_ids=list(range(65))),
    "logit_bias key": _sampling(("is 260", "0 to 259"), logit_bias={VOCAB_SIZE: 1.0}),
    "logit_bias value": _sampling(("is 101.0", "-100 to 100"), "unclamped", logit_bias={1: 101.0}),
    "allowed none": _sampling(("is ()", "at least one"), allowed_token_ids=[]),
    "allowed id": _sampling(("is 260",), allowed_token_ids=[VOCAB_SIZE]),
    "allowed all banned": _sampling(("is (5,)", "allowed_token_ids"), bad_token_ids=[5], allowed_token_ids=[5]),
    "bad id": _sampling(("is 260",), bad_token_ids=[VOCAB_SIZE]),
    "too long lists": Rule(
        "logit_bias",
        Ask(sampling={"bad_token_ids": [1] * 600, "allowed_token_ids": [2] * 600}),
        ("is 1200", "at most 1024"),
    ),
    "truncate": _sampling(("is 0", "a positive integer"), truncate_prompt_tokens=0),
    "budget": _sampling(("is -1", "0 or more"), thinking_token_budget=-1),
    "grammar": Rule(
        REGEX, Ask(sampling={"structured_outputs": {"regex": "a("}}), ("is 'a('", "no grammar can be made")
    ),
    "request id long": Rule("request_id", Ask(fields={"request_id": "x" * 129}), ("is 'xxx", "printable")),
    "request id control": Rule("request_id", Ask(fields={"request_id": "a\n"}), ("is 'a\\n'", "printable")),
    "salt": Rule("cache_salt", Ask(fields={"cache_salt": "x" * 257}), ("is 'xxx", "at most 256 characters")),
}


def takes(server: Server, rule: Rule) -> bool:
    """Whether a client of the server can break the rule."""
    used = {rule.field, *rule.needs, *rule.ask.sampling}
    return not used & server.lacks and ("unclamped" not in used or "clamped" not in server.lacks)


def test_every_sampling_field_has_a_rule() -> None:
    tried = {name for rule in RULES.values() for name in rule.ask.sampling}
    # Booleans have no bad value; every 64-bit number is a seed.
    assert set(FIELD_NAMES) - tried == {"include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "seed"}


@contextlib.asynccontextmanager
async def busy(*, max_waiting: int = 0) -> AsyncIterator[HttpServer]:
    """A server whose engine has as many sequences as it can run, all of one request."""
    async with http_serving(FakeOptions(step_seconds=0.005), max_waiting=max_waiting, gateways=BOTH) as s:
        sampling = pb.SamplingParams(max_tokens=4000, temperature=0, n=4)
        call = s.grpc.stub.Generate(pb.GenerateRequest(text="a", request_id="busy", sampling=sampling))
        await call.read()
        yield s
        call.cancel()


@EACH
def test_values_that_cannot_be(name: str) -> None:
    server = SERVERS[name]
    rules = {rule_name: rule for rule_name, rule in RULES.items() if takes(server, rule)}
    assert len(rules) >= 20

    async def test() -> None:
        async with http_serving(FakeOptions(max_model_len=96), max_waiting=2, gateways=BOTH) as s:
            for rule_name, rule in rules.items():
                told = await server.send(s, rule.ask)
                assert told.code == INVALID, (rule_name, told)
                assert told.message.startswith(server.names.get(rule.field, rule.field) + " is "), (rule_name, told)
                assert all(part in told.message for part in rule.words), (rule_name, told)
            assert s.grpc.received(Submit) == []
            frontend = s.grpc.server.frontend
            assert (frontend.accepted, frontend.refused) == (0, len(rules))
            assert sum(frontend.recorder.metrics.refused.values()) == len(rules)

    run(test())


@pytest.mark.parametrize("name", ["grpc", "vllm", "kserve"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_none(name: str, value: float) -> None:
    """JSON has none: of bodies see test_hostile_json."""
    given = str(value) if name == "kserve" else value

    async def test() -> None:
        async with http_serving(gateways=BOTH) as s:
            told = await SERVERS[name].send(s, Ask(sampling={"temperature": given}))
            where = SERVERS[name].names.get("temperature", "temperature")
            assert (told.code, f"{where} is {value}" in told.message, "from 0 to 100" in told.message) == (
                INVALID,
                True,
                True,
            )

    run(test())


@pytest.mark.parametrize("name", [name for name, server in SERVERS.items() if "model" not in server.lacks])
def test_another_model(name: str) -> None:
    async def test() -> None:
        async with http_serving(name="mine", gateways=BOTH) as s:
            told = await SERVERS[name].send(s, Ask(fields={"model": "other"}))
            field_name = SERVERS[name].names.get("model", "model")
            assert told == ("NOT_FOUND", f"{field_name} is 'other'; this server serves 'mine' only")
            assert s.grpc.received(Submit) == []
            mine = pb.GenerateRequest(text="a", model="mine", sampling=pb.SamplingParams(max_tokens=3))
            assert (await collect(s.grpc.stub.Generate(mine))).usage.completion_tokens == 3

    run(test())


@EACH
def test_a_model_that_is_loading(name: str) -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(load_seconds=0.5), ready=False, gateways=BOTH) as s:
            assert await SERVERS[name].send(s, Ask()) == ("UNAVAILABLE", "the model is still loading")

    run(test())


@EACH
def test_a_server_that_ends(name: str) -> None:
    async def test() -> None:
        async with http_serving(gateways=BOTH) as s:
            s.grpc.server.frontend.drain()
            told = await SERVERS[name].send(s, Ask())
            assert told == ("UNAVAILABLE", "the server is shutting down and takes no new requests")

    run(test())


@EACH
def test_a_full_server(name: str) -> None:
    async def test() -> None:
        async with busy() as s:
            told = await SERVERS[name].send(s, Ask())
            assert told.code == "RESOURCE_EXHAUSTED"
            assert told.message.startswith("the server holds 4 sequences and takes at most 4; try again in ")

    run(test())


@pytest.mark.parametrize("name", ["grpc", "completions", "chat", "responses", "vllm"])  # KServe's ids are no names
def test_an_id_that_is_taken(name: str) -> None:
    async def test() -> None:
        async with busy(max_waiting=4) as s:
            told = await SERVERS[name].send(s, Ask(fields={"request_id": "busy"}))
            words = "request_id is 'busy'; it must differ from those of the requests that are alive"
            assert told == ("ALREADY_EXISTS", words)

    run(test())


@EACH
def test_an_input_filter(name: str) -> None:
    async def test() -> None:
        async with http_serving(input_filter=f"{FILTERS}:no_bombs", gateways=BOTH) as s:
            told = await SERVERS[name].send(s, Ask("a bomb"))
            words = "the request was refused by this server's input filter: it is about bombs"
            assert told == ("FAILED_PRECONDITION", words)
            assert not s.grpc.received(Submit)
        async with http_serving(input_filter=f"{FILTERS}:broken", gateways=BOTH) as s:
            told = await SERVERS[name].send(s, Ask("secret"))
            assert (told.code, "secret" in told.message) == ("FAILED_PRECONDITION", False)

    run(test())


@pytest.mark.parametrize("name", ["grpc", "completions", "chat", "vllm", "kserve"])
def test_more_sequences_than_there_can_be(name: str) -> None:
    async def test() -> None:
        async with http_serving(max_waiting=2, gateways=BOTH) as s:
            told = await SERVERS[name].send(s, Ask(sampling={"n": 7}))
            assert told == (INVALID, "n is 7; this server holds at most 6 sequences at a time")

    run(test())


@EACH
def test_a_prompt_that_can_never_fit_the_pool(name: str) -> None:
    async def test() -> None:
        async with http_serving(FakeOptions(num_pages=3, page_size=16), gateways=BOTH) as s:  # 32 tokens
            told = await SERVERS[name].send(s, Ask("a" * 40))
            assert (told.code, "do not fit the pool" in told.message) == (INVALID, True), told

    run(test())
