"""The command line as a whole: dispatch, options that commands share, one look of every help and every error."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxinfer
from jaxinfer import cli
from jaxinfer.config import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, RuntimeConfig
from serving.commands import batch, bench, convert, evaluate, generate, keys, plan, profile, serve
from serving.commands import compile as compile_command
from serving.commands.options import RUNTIME_NAMES, runtime_config
from tests.fakes import write_model

ROOT = Path(__file__).resolve().parents[1]
NO_CACHE = Path("/nonexistent")


# -- dispatch -------------------------------------------------------------------------------------------------------


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in ("serve", "generate", "batch", "convert", "plan", "compile", "eval"))
    assert cli.main(["help"]) == 0
    assert capsys.readouterr().out == shown
    with pytest.raises(SystemExit) as ended:
        cli.main(["help", "plan"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: jaxinfer plan ")
    assert cli.main([]) == 2
    assert capsys.readouterr().out == shown
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxinfer {jaxinfer.__version__}\n"


def test_unknown_command(capsys):
    assert cli.main(["serv"]) == 2
    expected = (
        "jaxinfer: error: COMMAND is 'serv'; it must be one of serve, generate, batch, convert, plan, compile, keys, "
        "eval, bench, profile; did you mean serve?\n"
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
    # The seed has an option of its own (`serve`'s, or the request's), warming only `serve`, and step sizes follow.
    others = {"seed", "serve_while_warming", "step_sizes"}
    assert set(RUNTIME_NAMES) == {field.name for field in dataclasses.fields(RuntimeConfig)} - others
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
        "--expert-parallel-size": "4",
        "--priority-ageing-seconds": "1.5",
        "--attention-backend": "xla",
        "--self-test": "on",
        "--cpu-kernels": "avx2",
        "--compilation-cache-dir": "none",
        "--bundle": "somewhere",
    }
    argv = [part for pair in given.items() for part in pair] + ["--no-enable-prefix-caching", "--no-batch-invariant"]
    config = runtime_config(serve.make_parser("x").parse_args(argv))
    default = RuntimeConfig()
    # One has one value, see below; the other cannot go with a size of its own.
    others = {n for n in RUNTIME_NAMES if "pinned" not in n} - {"language_model_only", "enable_expert_parallel"}
    assert all(getattr(config, name) != getattr(default, name) for name in others)
    assert runtime_config(serve.make_parser("x").parse_args(["--enable-expert-parallel"])).enable_expert_parallel
    assert config.compilation_cache_dir is None
    assert runtime_config(serve.make_parser("x").parse_args([])) == default


# -- one look -------------------------------------------------------------------------------------------------------

PARSERS = {
    command: module.make_parser("jaxinfer")
    for command, module in {
        "serve": serve,
        "generate": generate,
        "batch": batch,
        "convert": convert,
        "plan": plan,
        "compile": compile_command,
        "eval": evaluate,
        "keys": keys,
        "bench": bench,
        "profile": profile,
    }.items()
}
LEAVES = dict(PARSERS)
for _group in ("keys", "bench"):
    (_own,) = (action for action in PARSERS[_group]._actions if isinstance(action, argparse._SubParsersAction))
    LEAVES |= {f"{_group} {name}": parser for name, parser in _own.choices.items()}
    del LEAVES[_group]


def options(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.dest != "help"]


def known_options(*parsers: argparse.ArgumentParser) -> set[str]:
    return {name for parser in parsers for action in parser._actions for name in action.option_strings}


def test_every_command_has_a_parser_here():
    assert PARSERS.keys() == cli.COMMANDS.keys()


@pytest.mark.parametrize("command", LEAVES)
def test_every_option_says_what_it_does_and_what_holds_without_it(command):
    parser = LEAVES[command]
    shown = " ".join(parser.format_help().split())
    assert shown.startswith(f"usage: jaxinfer {command} ")
    for action in options(parser):
        text = " ".join((parser._get_formatter()._expand_help(action)).split())
        what, _, default = text.rpartition(" (")
        assert what, f"{action.option_strings}: {text!r} does not say what it does"
        assert default.startswith("default: ") or default == "required)", f"{action.option_strings}: {text!r}"
        assert f"{', '.join(action.option_strings)}" in shown.replace(f" {action.metavar}", "")
        assert text in shown, f"{text!r} is not in the help"


def test_defaults_in_the_help_are_those_that_hold():
    shown = " ".join(PARSERS["serve"].format_help().split())
    for field in dataclasses.fields(RuntimeConfig):
        if field.name != "seed" and field.default not in (None, True, False, 1):
            said = f"{field.default:g}" if isinstance(field.default, float) else field.default
            about = shown.split(f"--{field.name.replace('_', '-')} ")[1].split(" --")[0]
            assert f"(default: {said})" in about, field.name
    assert f"sequences in one step (default: {MAX_NUM_SEQS['cpu']} on a CPU, {MAX_NUM_SEQS['accelerator']} " in shown
    assert f"(default: {MAX_NUM_BATCHED_TOKENS['cpu']} on a CPU, {MAX_NUM_BATCHED_TOKENS['accelerator']} " in shown
    assert "devices to split the model over (default: 1)" in shown  # and not "on", to which 1 is equal


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["serve", "--prot", "1"], "serve: error: there is no option --prot; did you mean --port?"),
        (["generate", "--maxtokens=3"], "generate: error: there is no option --maxtokens; did you mean --max-tokens?"),
        (["batch", "--modle", "x", "a", "b"], "batch: error: there is no option --modle; did you mean --model?"),
        (["plan", "-x"], "plan: error: there is no option -x; jaxinfer plan --help lists those there are"),
        (["convert", "--quantise", "int4"], "convert: error: there is no option --quantise; did you mean --quantize?"),
        (
            ["convert", "a", "b", "--quantize", "int5"],
            "convert: error: --quantize is 'int5'; it must be one of int8, int4, fp8, w8a8, fp8-dynamic, mxfp4; "
            "did you mean int8?",
        ),
        (["keys", "nwe"], "keys: error: COMMAND is 'nwe'; it must be one of new, list; did you mean new?"),
        (["keys", "new", "--tennant", "a"], "keys new: error: there is no option --tennant; did you mean --tenant?"),
        (["keys", "new"], "keys new: error: missing: --tenant; usage: jaxinfer keys new [OPTION ...]"),
        (["serve", "a", "b"], "serve: error: 'b' is one argument too many; usage: jaxinfer serve [OPTION ...] [MODEL]"),
        (["plan", "--page-size", "x"], "plan: error: --page-size is 'x'; it must be a whole number"),
        (
            ["serve", "--model", "x"],
            "serve: error: there is no option --model; MODEL is given without one: usage: "
            "jaxinfer serve [OPTION ...] [MODEL]",
        ),
        (
            ["batch", "--input=x"],
            "batch: error: there is no option --input; INPUT is given without one: "
            "usage: jaxinfer batch [OPTION ...] INPUT OUTPUT",
        ),
        (["plan", "--page-size"], "plan: error: --page-size needs a value"),
        (["eval", "--compare", "demo"], "eval: error: --compare needs 2 values"),
        (["generate", "--json=x", "y"], "generate: error: --json takes no value, and 'x' was given"),
        (
            ["plan", "--max-num=4"],
            "plan: error: --max-num=4 could be --max-num-seqs, --max-num-batched-tokens: say which",
        ),
        (["eval", "--tasks", "additoin", "--texts", "0"], None),
    ],
)
def test_what_was_meant_is_asked_in_one_line(argv, message, capsys):
    assert run(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    if message is None:
        assert captured.err.endswith("; did you mean addition?\n")
    else:
        assert captured.err == f"jaxinfer {message}\n"


def run(argv: list[str]) -> int:
    """The exit code, however it comes."""
    try:
        return cli.main(argv)
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code


def test_names_may_be_spelt_with_underscores():
    given = PARSERS["serve"].parse_args(["--max_model_len=64", "--http_port", "9", "--served-model-name", "a_b"])
    assert (given.max_model_len, given.http_port, given.served_model_name) == (64, 9, ["a_b"])


def test_keys_alone_names_its_commands(capsys):
    assert run(["keys"]) == 2
    shown = capsys.readouterr().out
    assert shown.startswith("usage: jaxinfer keys COMMAND")
    assert "new  " in shown
    assert "list  " in shown


JUNK = ("nonsense", "-5", "nan")
MORE_JUNK = (
    "",
    "1e999",
    "9" * 5000,
    "[]",
    "x\ny",
    "\N{SNOWMAN}=1",
    "0",
    "0=nan",
    "1,,2",
    "../..",
    "host:0",
    "[::1]:1:2",
)
# So that nothing runs where a value is taken after all.
NOWHERE = {
    "serve": ["/nonexistent/model"],
    "generate": ["--model=/nonexistent/model", "x"],
    "batch": ["--model=/nonexistent/model", "/nonexistent/in", "/nonexistent/out"],
    "convert": ["/nonexistent/model", "/nonexistent/out"],
    "plan": ["/nonexistent/model"],
    "compile": ["/nonexistent/model", "--out=/nonexistent/out"],
    "eval": ["/nonexistent/model"],
    "profile": ["/nonexistent/model"],
    "bench serve": ["--url=grpc://localhost:1"],
    "bench throughput": ["--model=/nonexistent/model"],
    "bench latency": ["--model=/nonexistent/model"],
    "bench startup": ["--model=/nonexistent/model"],
    "keys new": ["--tenant=!", "--file=/nonexistent/keys"],
    "keys list": ["--file=/nonexistent/keys"],
}


@pytest.mark.parametrize("values", [JUNK, pytest.param(MORE_JUNK, marks=pytest.mark.longer)], ids=["some", "more"])
@pytest.mark.parametrize("command", LEAVES)
def test_no_value_of_any_option_is_answered_by_a_traceback(command, values, capsys):
    for action in options(LEAVES[command]):
        for value in values if action.nargs != 0 else ("x",):
            given = [f"{action.option_strings[-1]}={value}"] if action.nargs is None else [action.option_strings[-1]]
            given += [value, value] if action.nargs == 2 else []
            code = run([*command.split(), *NOWHERE[command], *given])
            captured = capsys.readouterr()
            assert code in (1, 2), given
            program = "keys" if captured.err.startswith("jaxinfer keys: ") else command
            assert captured.err.startswith(f"jaxinfer {program}: error: "), captured.err
            assert captured.err.count("\n") == 1, captured.err


REFUSED = [  # what cannot be, with the shipped demo where a model is needed
    ["eval", "nosuch"],
    ["eval", "--compare", "demo", "nosuch"],
    ["eval", "--compare", "demo@max_model_len=9999", "demo"],
    ["eval", "--tasks", "nosuch"],
    ["eval", "--items", "/nonexistent/items"],
    ["eval", "--answers", "/nonexistent/answers"],
    ["eval", "--json=both", "--answers=both"],
    ["eval", "--max-model-len", "9999"],
    ["eval", "--server", "http://localhost:8000"],
    ["serve", "nosuch"],
    ["serve", "--port=8000"],
    ["serve", "--host", "nosuch.invalid"],
    ["serve", "--max-model-len", "9999"],
    ["serve", "--tensor-parallel-size", "3"],
    ["serve", "--expert-parallel-size", "2"],
    ["serve", "--expert-parallel-size", "2", "--enable-expert-parallel"],
    ["serve", "--num-pages", "1"],
    ["serve", "--num-pages", "3", "--max-model-len", "1024"],
    ["serve", "--api-keys", "/nonexistent/keys"],
    ["serve", "--ledger", "file/ledger"],
    ["serve", "--tls-cert", "/nonexistent/pem", "--tls-key", "/nonexistent/key"],
    ["serve", "--input-filter", "nosuch:filter"],
    ["generate", "x", "--model", "nosuch"],
    ["generate", "-", "--model", "nosuch"],
    ["generate", "x", "--top-p", "3"],
    ["generate", "x", "--chat", "--template-variables", "{"],
    ["generate", "x", "--chat", "--template-variables", "[]"],
    ["generate", "--token-ids", "999999"],
    ["generate", "x", "--min-tokens", "9999", "--max-tokens", "9999"],
    ["generate", "x", "--timeout", "-1"],
    ["generate", "x", "--api-key-file", "key"],
    ["batch", "/nonexistent/in", "out", "--model", "nosuch"],
    ["batch", "/nonexistent/in", "out"],
    ["batch", "/nonexistent/in", "out", "--max-model-len", "9999"],
    ["convert", "nosuch", "out"],
    ["convert", str(ROOT / "checkpoints" / "demo"), "out"],
    ["convert", "{model}", "."],
    ["convert", "{model}", "file/out"],
    ["convert", "{model}", "out", "--quantize", "int8", "--policy", "/nonexistent/policy"],
    ["convert", "{model}", "out", "--policy", "{model}/config.json"],
    ["convert", "{model}", "out", "--group", "33", "--quantize", "int4"],
    ["plan", "nosuch"],
    ["plan", "--max-model-len", "9999"],
]


@pytest.mark.longer
def test_what_cannot_run_is_refused_before_jax_is_imported(tmp_path):
    """One process for all of them: the second half of its answer is whether anything long has begun."""
    model = write_model(tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"not read")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "file").touch()
    argvs = [[part.format(model=model) if "{model}" in part else part for part in argv] for argv in REFUSED]
    code = (
        "import json, sys\nfrom jaxinfer import cli\n"
        "for argv in json.loads(sys.argv[1]):\n"
        "    try: code = cli.main(argv)\n"
        "    except SystemExit as ended: code = ended.code\n"
        "    print(code, 'jax' in sys.modules, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(argvs)],
        cwd=tmp_path / "work",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    answers = [line for line in done.stdout.splitlines() if line.split()[0].isdigit()]
    assert [(argv, line) for argv, line in zip(argvs, answers, strict=True) if line != "2 False"] == []
    errors = done.stderr.splitlines()
    assert len(errors) == len(argvs), done.stderr
    for argv, error in zip(argvs, errors, strict=True):
        assert error.startswith(f"jaxinfer {argv[0]}: error: ")
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["file"]  # no output of what never ran


def test_failures_of_the_system_and_a_reader_that_left(monkeypatch, capsys):
    def no_space(*_: object) -> int:
        raise OSError(28, "No space left on device", "/full/file")

    def stopped(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "plan", cli.Command("", no_space))
    assert cli.main(["plan"]) == 1
    assert capsys.readouterr().err == "jaxinfer plan: error: [Errno 28] No space left on device: '/full/file'\n"
    monkeypatch.setitem(cli.COMMANDS, "plan", cli.Command("", stopped))
    assert cli.main(["plan"]) == 130


def test_a_line_to_paste_begins_as_the_program_was_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "bin" / "jaxinfer"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert cli._called() == "bin/jaxinfer"
    monkeypatch.setattr(sys, "argv", ["/somewhere/jaxinfer/__main__.py"])
    assert cli._called() == "python -m jaxinfer"
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", str(script.parent))
    assert cli._called() == "jaxinfer"
    assert cli.usage().startswith("usage: jaxinfer COMMAND")
