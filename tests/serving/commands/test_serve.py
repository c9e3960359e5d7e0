"""`jaxinfer serve` before it serves: its options, its refusals, what it shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.commands import serve
from serving.commands.console import reachable
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
