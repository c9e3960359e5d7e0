"""`jaxinfer serve` before it serves: its options, its refusals, what it shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError, RuntimeConfig
from serving.commands import serve
from serving.commands.console import reachable
from serving.commands.early import check_model
from tests.fakes import FakeOptions, write_model

NO_CACHE = Path("/nonexistent")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", temperature=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nonexistent"], "MODEL is '/nonexistent'; there is no such folder"),
        (["some/model"], "hf download some/model"),
        (["~nosuchuser/model"], "MODEL is '~nosuchuser/model'; there cannot be such a folder"),
        (["x" * 5000], "MODEL is 'xxx"),
        (["--page-size", "0", "{model}"], "page_size is 0; it must be a positive integer"),
        (["--gpu-memory-utilization", "1.5", "{model}"], "gpu_memory_utilization is 1.5"),
    ],
)
def test_serve_refuses_in_one_line(model, arguments, message, capsys):
    assert serve.main([argument.format(model=model) for argument in arguments], hub_cache=NO_CACHE) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxinfer serve: error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "value", "allowed"),
    [
        ("--port", "65536", "from 0 to 65535"),
        ("--max-waiting", "-1", "0 or more"),
        ("--grace-seconds", "nan", "0 or more"),
    ],
)
def test_serve_refuses_its_own_options(argument, value, allowed, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main([argument, value], hub_cache=NO_CACHE)
    assert ended.value.code == 2
    assert f"{argument} is {value}; it must be {allowed}" in capsys.readouterr().err


def test_serve_refuses_a_model_without_tokenizer(tmp_path, capfd):
    """Named, with the way out; a tokenizer that is broken or absent must not be served around."""
    folder = write_model(tmp_path / "bare")
    (folder / "tokenizer.json").unlink()
    code = serve.main([str(folder), "--port", "0"], hub_cache=NO_CACHE, build=lambda *_: FakeOptions().build)
    assert code == 2
    error = capfd.readouterr().err
    assert "no tokenizer in" in error
    assert "--skip-tokenizer-init" in error


def test_serve_tells_why_a_model_cannot_be_loaded(model, capfd):
    """One line and exit code 2; a traceback and exit code 1 only where the program is at fault."""

    def start(options: FakeOptions) -> int:
        return serve.main([str(model), "--port", "0"], hub_cache=NO_CACHE, build=lambda *_: options.build)

    assert start(FakeOptions(refuse="config.json: rope type 'x'\nis unknown")) == 2
    assert capfd.readouterr().err == "jaxinfer serve: error: config.json: rope type 'x' is unknown\n"
    assert start(FakeOptions(break_load="a bug")) == 1
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert error.endswith("\njaxinfer serve: error: RuntimeError: a bug\n")


def test_addresses_as_a_client_writes_them():
    assert reachable("0.0.0.0:1") == reachable("127.0.0.1:1") == reachable("[::]:1") == "localhost:1"
    assert reachable("10.0.0.7:50051") == "10.0.0.7:50051"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "8000"], "--port and --http-port are both 8000; gRPC and HTTP need a port each"),
        (["--port", "9", "--http-port", "9"], "--port and --http-port are both 9"),
        (
            ["--trust-request-chat-template", "--input-filter", "m:f"],
            "--trust-request-chat-template cannot go with --input-filter",
        ),
        (["--http-port", "65536"], "--http-port is '65536'; it must be a port from 0 to 65535, or none"),
        (["--gateways", "vllm,kserv"], "--gateways is 'vllm,kserv'; it must be a list of vllm, kserve, or none; did"),
    ],
)
def test_ports_and_gateways(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        serve.main(arguments, hub_cache=NO_CACHE)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"jaxinfer serve: error: {message}")


@pytest.mark.parametrize(
    ("runtime", "message"),
    [
        (RuntimeConfig(max_model_len=10**6), "max_model_len is 1000000; the model's max_position_embeddings"),
        (RuntimeConfig(tensor_parallel_size=7), "tensor_parallel_size is 7; with "),
        (RuntimeConfig(expert_parallel_size=2), "expert_parallel_size is 2; the model has no experts"),
        (RuntimeConfig(compilation_cache_dir=f"{__file__}/x"), "compilation_cache_dir is "),
        (RuntimeConfig(compilation_cache_dir="~nosuchuser/x"), "compilation_cache_dir is '~nosuchuser/x'; it must be"),
        (RuntimeConfig(num_pages=1), "num_pages is 1; at least 2 are needed, as one holds nothing"),
        (
            RuntimeConfig(num_pages=2, max_model_len=100),
            "max_model_len is 100, but the KV pool holds 64 tokens (num_pages = 2)",
        ),
    ],
)
def test_a_model_that_cannot_run_so_is_known_by_its_files(model, runtime, message):
    with pytest.raises(ConfigError) as found:
        check_model(model, runtime, weights=False)
    assert str(found.value).startswith(message)


def test_pages_that_windows_give_back_count(tmp_path):
    """A window of 16 tokens holds three pages of 8 and one to write, however long the sequence."""
    folder = write_model(tmp_path / "windows")
    described = json.loads((folder / "config.json").read_text())
    changed = {**described, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(changed))
    sizes = {"page_size": 8, "max_num_seqs": 1, "max_num_batched_tokens": 8, "max_model_len": 200}
    check_model(folder, RuntimeConfig(num_pages=5, **sizes), weights=False)
    with pytest.raises(ConfigError, match=r"max_model_len is 200, but the KV pool holds 24 tokens \(num_pages = 4\)"):
        check_model(folder, RuntimeConfig(num_pages=4, **sizes), weights=False)


def test_weights_are_looked_for_before_an_engine_is_made(tmp_path):
    folder = write_model(tmp_path / "tiny")
    check_model(folder, RuntimeConfig(), weights=False)
    with pytest.raises(CheckpointError, match="found no safetensors file"):
        check_model(folder, RuntimeConfig())
    index = folder / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}')
    (folder / "1.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"tensor b is in 2\.safetensors; there is no such file"):
        check_model(folder, RuntimeConfig())
    (folder / "2.safetensors").touch()
    check_model(folder, RuntimeConfig())  # what is in them the engine reads
