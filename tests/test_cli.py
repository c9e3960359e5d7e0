"""The command line as a whole: dispatch, options that commands share, one look of every help and every error."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import jaxinfer
from jaxinfer import cli
from jaxinfer.config import RuntimeConfig
from serving.commands import generate, serve
from serving.commands.options import RUNTIME_NAMES, runtime_config

ROOT = Path(__file__).resolve().parents[1]
NO_CACHE = Path("/nonexistent")


# -- dispatch -------------------------------------------------------------------------------------------------------


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("serve", "generate", "batch", "convert", "plan", "eval"))
    assert cli.main([]) == 2
    assert capsys.readouterr().out == shown
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxinfer {jaxinfer.__version__}\n"


def test_unknown_command(capsys):
    assert cli.main(["serv"]) == 2
    expected = (
        "jaxinfer: error: COMMAND is 'serv'; it must be one of serve, generate, batch, convert, plan, keys, eval; "
        "did you mean serve?\n"
    )
    assert capsys.readouterr().err == expected


def test_python_m_jaxinfer_and_no_jax_for_the_overview():
    code = "import sys, runpy; sys.argv = ['x', '--help']\ntry: runpy.run_module('jaxinfer', run_name='__main__')\n"
    code += "except SystemExit as e: print('CODE', e.code, 'jax' in sys.modules, 'grpc' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True
    )
    assert "usage:" in done.stdout
    assert "CODE 0 False False" in done.stdout


@pytest.mark.parametrize("command", [serve, generate])
def test_help_lists_every_runtime_option(command, capsys):
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"], hub_cache=NO_CACHE)
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in shown for name in RUNTIME_NAMES)


def test_runtime_options_are_the_configs_fields():
    # The seed of `serve` is the server's, that of `generate` the request's.
    assert set(RUNTIME_NAMES) == {field.name for field in dataclasses.fields(RuntimeConfig)} - {"seed"}
    given = {
        "--dtype": "float32",
        "--device": "cpu",
        "--max-model-len": "64",
        "--max-num-seqs": "4",
        "--max-num-batched-tokens": "16",
        "--max-logprobs": "30",
        "--kv-cache-dtype": "int8",
        "--quantization": "int4",
        "--page-size": "8",
        "--num-pages": "9",
        "--gpu-memory-utilization": "0.5",
        "--tensor-parallel-size": "2",
        "--priority-ageing-seconds": "1.5",
        "--attention-backend": "xla",
        "--compilation-cache-dir": "none",
    }
    argv = [part for pair in given.items() for part in pair] + ["--no-enable-prefix-caching", "--no-batch-invariant"]
    config = runtime_config(serve.make_parser("x").parse_args(argv))
    default = RuntimeConfig()
    assert all(getattr(config, name) != getattr(default, name) for name in RUNTIME_NAMES)
    assert config.compilation_cache_dir is None
    assert runtime_config(serve.make_parser("x").parse_args([])) == default
