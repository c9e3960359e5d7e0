"""The shipped demo behind a real server process and a real channel: the same tokens as offline, and clean ends."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import jax
import pytest
from smg_grpc_proto import vllm_engine_pb2 as vllm_pb
from smg_grpc_proto import vllm_engine_pb2_grpc as vllm_grpc
from smg_grpc_proto.generated import common_pb2

from jaxinfer import LLM, SamplingParams
from jaxinfer.model_path import demo_path
from protos.jaxinfer.v1 import inference_pb2 as pb
from protos.jaxinfer.v1 import inference_pb2_grpc as pb_grpc
from protos.open_inference import grpc_service_pb2_grpc as infer_grpc
from tests.serving.gateways.harness import infer, text_output

ROOT = Path(__file__).resolve().parents[2]
# Small, so that it compiles quickly; the same for both sides, so that both run the same programs.
SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 16, "max_model_len": 512, "num_pages": 64}
PROMPT = "Once upon a time"


class Process:
    def __init__(self) -> None:
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
        # With the tests' own number of devices, which is a part of a program's name in the cache, nothing that these
        # have compiled is compiled again.
        devices, programs = str(jax.config.jax_num_cpu_devices), str(jax.config.jax_compilation_cache_dir or "none")
        command = [
            sys.executable,
            "-m",
            "jaxinfer",
            "serve",
            "--port",
            "0",
            "--compilation-cache-dir",
            programs,
            *flags,
        ]
        environment = os.environ | {"JAX_NUM_CPU_DEVICES": devices}
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        self.lines: list[str] = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "generate --server" in line:
                break
        else:
            raise AssertionError("".join(self.lines))
        self.address = next(word for word in line.split() if word.startswith("localhost:"))
        self.channel = grpc.insecure_channel(self.address)
        self.stub: Any = pb_grpc.InferenceStub(self.channel)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)


@pytest.fixture(scope="module")
def server() -> Iterator[Process]:
    process = Process()
    yield process
    if process.process.poll() is None:
        process.process.kill()
        process.process.wait()


def request(**sampling: Any) -> pb.GenerateRequest:
    return pb.GenerateRequest(text=PROMPT, sampling=pb.SamplingParams(**sampling))


def collect(server: Process, message: pb.GenerateRequest) -> tuple[str, list[int], pb.Usage]:
    text, ids, usage = "", [], pb.Usage()
    for reply in server.stub.Generate(message, timeout=60):
        text += reply.delta.text
        ids += reply.delta.token_ids
        if reply.HasField("finished"):
            usage = reply.finished.usage
    return text, ids, usage


def test_the_client_line_to_paste_prints_a_right_answer(server: Process) -> None:
    line = shlex.split(server.lines[-1])
    command = [sys.executable, "-m", "jaxinfer", *line[line.index("generate") :]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.rstrip().endswith("347 + 586 = 933.")


def idle(server: Process, seconds: float = 10) -> bool:
    """Whether nothing runs and every page is back, within a moment."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = server.stub.GetStats(pb.GetStatsRequest())
        if not stats.running and not stats.waiting and stats.free_pages == stats.total_pages:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.timeout(240)
def test_streams_what_the_offline_engine_generates(server: Process) -> None:
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 7, "max_tokens": 40, "repetition_penalty": 1.1}
    text, ids, usage = collect(server, request(**settings))
    with LLM(demo_path(), compilation_cache_dir=None, **SMALL) as llm:
        offline = llm.generate([PROMPT], SamplingParams(**settings))[0]
    assert text == offline.outputs[0].text
    assert ids == offline.outputs[0].token_ids
    assert (usage.prompt_tokens, usage.completion_tokens) == (len(offline.prompt_token_ids), len(ids))
    assert text.strip()


def test_the_gateways_services_say_the_same(server: Process) -> None:
    """Through the real process with its default options."""
    settings = {"temperature": 0.75, "top_p": 0.875, "seed": 7, "max_tokens": 24}  # exact in 32 bits, as vLLM's are
    text, ids, _ = collect(server, request(**settings))
    model = server.stub.GetModelInfo(pb.GetModelInfoRequest()).model
    vllm = vllm_grpc.VllmEngineStub(server.channel)
    sampling = vllm_pb.SamplingParams(top_k=0, skip_special_tokens=True, **settings)
    (reply,) = vllm.Generate(vllm_pb.GenerateRequest(text=PROMPT, sampling_params=sampling))
    assert list(reply.complete.output_ids) == ids
    info = vllm.GetModelInfo(vllm_pb.GetModelInfoRequest())
    assert (info.served_model_name, info.model_path) == (model, str(demo_path()))
    archive = b"".join(chunk.data for chunk in vllm.GetTokenizer(common_pb2.GetTokenizerRequest()))
    names = zipfile.ZipFile(io.BytesIO(archive)).namelist()
    assert {"tokenizer.json", "config.json", "chat_template.jinja"} <= set(names)
    question = infer(PROMPT, model_name=model, sampling=settings)
    answer = infer_grpc.GRPCInferenceServiceStub(server.channel).ModelInfer(question)
    assert text_output(answer) == [PROMPT + text]


def test_cancel_and_deadline_give_the_pages_back(server: Process) -> None:
    call = server.stub.Generate(request(max_tokens=400, ignore_eos=True))
    next(iter(call))
    call.cancel()
    assert idle(server)
    with pytest.raises(grpc.RpcError) as caught:
        list(server.stub.Generate(request(max_tokens=490, n=4, ignore_eos=True), timeout=0.15))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert idle(server)


def test_bad_requests_are_refused_by_name(server: Process) -> None:
    for sampling, words in [
        ({"min_tokens": 5000, "max_tokens": 5000}, "min_tokens is 5000"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"n": 0}, "n is 0"),
    ]:
        with pytest.raises(grpc.RpcError) as caught:
            list(server.stub.Generate(request(**sampling), timeout=30))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert words in (caught.value.details() or "")


def test_says_what_it_is_and_has_compiled_nothing(server: Process) -> None:
    info = server.stub.GetModelInfo(pb.GetModelInfoRequest())
    assert info.backends["paged_attention"] in ("native_cpu", "xla")
    assert info.backends["products"].startswith("native_cpu (") == (info.backends["paged_attention"] == "native_cpu")
    assert server.stub.GetStats(pb.GetStatsRequest()).compilations_after_ready == 0


def test_drains_on_sigterm(server: Process) -> None:
    """Last: running work ends properly, then the process exits with 0."""
    call = server.stub.Generate(request(max_tokens=300, ignore_eos=True))
    replies = iter(call)
    next(replies)
    server.process.send_signal(signal.SIGTERM)
    rest = list(replies)
    assert rest[-1].finished.usage.completion_tokens == 300
    assert server.process.wait(30) == 0
