"""Names given to libraries as strings, which only these tests check: a library ignores what it does not know."""

from __future__ import annotations

import ast
import asyncio
import re
from functools import cache
from pathlib import Path

import jax
import jaxlib
import pytest
from grpc._cython import cygrpc
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from serving import server
from serving.errors import RETRY_METADATA, overloaded
from serving.grpc_server import options
from serving.http.errors import from_refusal
from serving.observing import tracing
from serving.observing.metrics import SPECS
from tests.fakes import FakeOptions
from tests.serving.harness import greedy, run, serving, until

ROOT = Path(__file__).resolve().parents[2]
_NAME = re.compile(r"grpc\.|JAX_|XLA_|gen_ai\.")
ROOMS = ("jaxinfer", "pallas_kernels", "checkpoints", "serving", "scripts", "tests", "deploy")


@cache
def strings() -> list[tuple[Path, str]]:
    """Every string of our Python that could be such a name."""
    paths = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path != Path(__file__)]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return [
        (path, node.value)
        for path, text in texts.items()
        if _NAME.search(text)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.search(node.value)
    ]


@cache
def known_to_grpc() -> frozenset[str]:
    """Channel arguments are literals of gRPC's core, so they are strings of the compiled library."""
    core = Path(cygrpc.__file__).read_bytes()
    return frozenset(name.decode() for name in re.findall(rb"grpc\.[a-z0-9_.]+", core))


def test_every_channel_argument_is_one_of_grpcs():
    assert "grpc.http2.min_recv_ping_interval_without_data_ms" not in known_to_grpc()  # the macro's name, not its value
    used = {
        (text, str(path.relative_to(ROOT)))
        for path, text in strings()
        if re.fullmatch(r"grpc\.(?!aio|_)[a-z0-9_.]*[a-z0-9]", text) and "_" in text
    }
    assert {name for name, _ in options.grpc_options(1)} <= {name for name, _ in used}
    assert [each for each in sorted(used) if each[0] not in known_to_grpc()] == []


HEADERS, PING, GOAWAY = 1, 6, 7
END_HEADERS, END_STREAM, ACK = 4, 1, 1


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Of HTTP/2 (RFC 9113, section 4.1)."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def header(name: str, value: str) -> bytes:
    """A literal field that is not indexed (RFC 7541, section 6.2.2); both shorter than 127 bytes."""
    return b"\0" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def test_a_silent_stream_outlives_its_clients_pings():
    """Frame by frame, since clients hold their pings back: grpc-go and proxies do not hold theirs."""

    async def test():
        async with serving(FakeOptions(hang_at_step=1)) as s:
            host, port = s.server.address.split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            path = f"/{server.SERVICE}/Generate"
            fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
            fields |= {"te": "trailers", "content-type": "application/grpc"}
            message = greedy().SerializeToString()
            writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
            writer.write(frame(HEADERS, END_HEADERS, 1, b"".join(header(*field) for field in fields.items())))
            writer.write(frame(0, END_STREAM, 1, b"\0" + len(message).to_bytes(4, "big") + message))
            await until(lambda: s.server.frontend.open_requests == 1, "the request waits for its first token")
            for i in range(20):
                writer.write(frame(PING, 0, 0, i.to_bytes(8, "big")))
                while True:
                    head = await reader.readexactly(9)
                    payload = await reader.readexactly(int.from_bytes(head[:3], "big"))
                    assert head[3] != GOAWAY, payload
                    if head[3] == PING and head[4] & ACK:
                        break
            assert s.server.frontend.open_requests == 1
            s.engine.released.set()
            writer.close()

    run(test())


# -- environment ------------------------------------------------------------------------------------------------------

# Read by libraries that are not installed wherever these tests run: their documentation has the names.
ELSEWHERE = {
    "XLA_FLAGS",
    "TORCHINDUCTOR_CACHE_DIR",
    "TRITON_CACHE_DIR",
    "CUDA_VISIBLE_DEVICES",
}


@cache
def read_by_jax() -> frozenset[str]:
    found = {name.upper() for name in jax.config.values}
    sources = [path for library in (jax, jaxlib) for path in Path(library.__file__).parent.rglob("*.py")]
    for path in sources:
        found |= set(re.findall(r"[\"']((?:XLA|JAX)_[A-Z0-9_]+)[\"']", path.read_text(encoding="utf-8")))
    return frozenset(found)


def test_every_variable_for_jax_is_one_that_it_reads():
    used = {text for _, text in strings() if re.fullmatch(r"(JAX|XLA)_[A-Z0-9_]+", text)}
    for path in (*(ROOT / "deploy").rglob("*"), *(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "Makefile"):
        if path.is_file() and path.suffix != ".png":
            used |= set(re.findall(r"\b((?:JAX|XLA)_[A-Z0-9_]+)\b(?==)", path.read_text(encoding="utf-8")))
    used -= {"JAX_TRITON_DUMP_DIR"}  # jax-triton's
    assert {"JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "XLA_PYTHON_CLIENT_PREALLOCATE"} <= used
    assert sorted(used - read_by_jax() - ELSEWHERE) == []


def test_every_attribute_of_a_span_with_a_standard_prefix_is_in_the_standard():
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    used = {text for path, text in strings() if path == Path(tracing.__file__) and text.startswith("gen_ai.")}
    assert len(used) >= 7
    assert used <= known


@pytest.mark.parametrize("name", ["traceparent", "tracestate"])
def test_headers_of_traces_are_those_of_the_propagator(name):
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    assert name in TraceContextTextMapPropagator().fields
    assert name in tracing.TRACE_HEADERS


# -- what others read from our answers --------------------------------------------------------------------------------

# The metrics of vLLM 0.32 (vllm/v1/metrics/loggers.py) that this server has too, with the labels beside model_name and
# engine. Dashboards and gateways made for vLLM ask for them.
VLLMS = {
    "num_requests_running": (),
    "num_requests_waiting": (),
    "kv_cache_usage_perc": (),
    "cache_config_info": ("block_size", "num_gpu_blocks"),  # of many: the fields of CacheConfig
    "prompt_tokens_total": (),
    "generation_tokens_total": (),
    "request_success_total": ("finished_reason",),
    "num_preemptions_total": (),
    "prefix_cache_queries_total": (),
    "prefix_cache_hits_total": (),
    "time_to_first_token_seconds": (),
    "inter_token_latency_seconds": (),
    "e2e_request_latency_seconds": (),
    "request_queue_time_seconds": (),
    "request_prefill_time_seconds": (),
    "request_decode_time_seconds": (),
    "request_inference_time_seconds": (),
    "request_prompt_tokens": (),
    "request_generation_tokens": (),
    "request_max_num_generation_tokens": (),
    "request_params_n": (),
    "request_params_max_tokens": (),
    "iteration_tokens_total": (),
}


def test_metrics_that_bear_vllms_prefix_are_vllms():
    assert {spec.name: spec.labels for spec in SPECS if spec.shared} == VLLMS


def test_headers_that_ask_for_patience_are_those_that_clients_obey():
    import inspect

    from openai import _base_client

    answer = from_refusal(overloaded("full", 1500))
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    assert headers == {"retry-after": "2", "retry-after-ms": "1500"}
    read = inspect.getsource(_base_client)
    assert all(f'"{name}"' in read for name in headers)
    assert RETRY_METADATA.encode() in Path(cygrpc.__file__).read_bytes()  # gRPC's own
