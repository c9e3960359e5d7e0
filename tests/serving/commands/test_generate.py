"""`jaxinfer generate` with a server and without: what is printed, exit codes, one-line errors."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxinfer.sampling_params import FIELD_NAMES, SamplingParams
from serving.commands import generate
from tests.fakes import BOS, FakeOptions, write_model
from tests.serving import harness
from tests.serving.commands.background import Background

ROOT = Path(__file__).resolve().parents[3]
NO_CACHE = Path("/nonexistent")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", temperature=0.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Background]:
    background = Background(
        lambda: harness.serving(FakeOptions(step_seconds=0.001), sampling_defaults={"temperature": 0.0})
    )
    yield background
    background.close()


def ask(server: Background, *arguments: str) -> int:
    return generate.main([*arguments, "--server", server.address], hub_cache=NO_CACHE)


def test_streams_text_from_a_server(server, capsys):
    assert ask(server, "--max-tokens", "8", "Once upon a time") == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("abcdefgh\n", "")
    assert server.submitted.prompt_token_ids == (BOS, *b"Once upon a time")


def test_text_appears_as_it_is_generated(server):
    """Each piece is flushed when it comes, not at the end."""
    pieces = []

    class Spy(io.StringIO):
        def flush(self):
            if self.getvalue() and (not pieces or pieces[-1] != self.getvalue()):
                pieces.append(self.getvalue())

    before, sys.stdout = sys.stdout, Spy()
    try:
        assert ask(server, "--max-tokens", "60", "x") == 0
    finally:
        sys.stdout = before
    assert len(pieces) > 10


OPTIONS: dict[str, tuple[list[str], object]] = {
    "n": (["--n", "2", "--temperature", "1"], 2),
    "temperature": (["--temperature", "0.5"], 0.5),
    "top_p": (["--top-p", "0.5"], 0.5),
    "top_k": (["--top-k", "5"], 5),
    "min_p": (["--min-p", "0.25"], 0.25),
    "repetition_penalty": (["--repetition-penalty", "1.5"], 1.5),
    "presence_penalty": (["--presence-penalty", "-0.5"], -0.5),
    "frequency_penalty": (["--frequency-penalty", "0.5"], 0.5),
    "seed": (["--seed", "-1"], 2**64 - 1),
    "max_tokens": (["--max-tokens", "5"], 5),
    "min_tokens": (["--min-tokens", "2"], 2),
    "stop": (["--stop", "x", "--stop", "yz"], ("x", "yz")),
    "stop_token_ids": (["--stop-token-ids", "1,2"], (1, 2)),
    "include_stop_str_in_output": (["--include-stop-str-in-output"], True),
    "ignore_eos": (["--ignore-eos"], True),
    "logprobs": (["--json", "--logprobs", "2"], 2),
    "prompt_logprobs": (["--json", "--prompt-logprobs", "1"], 1),
    "logit_bias": (["--logit-bias", "3=1.5", "--logit-bias", "4=-2"], {3: 1.5, 4: -2.0}),
    "allowed_token_ids": (["--allowed-token-ids", "7,8"], (7, 8)),
    "bad_token_ids": (["--bad-token-ids", "9"], (9,)),
    "skip_special_tokens": (["--no-skip-special-tokens"], False),
    "truncate_prompt_tokens": (["--truncate-prompt-tokens", "1"], 1),
    "structured_outputs": (["--structured-outputs", '{"regex": "[a-z]+"}'], None),  # see below
    "thinking_token_budget": (["--thinking-token-budget", "5"], None),  # see below
}


def test_every_sampling_field_has_an_option_that_arrives(server, capsys):
    assert set(OPTIONS) == set(FIELD_NAMES)
    default = SamplingParams(temperature=0.0, max_tokens=6)
    for name, (argv, value) in OPTIONS.items():
        if name == "thinking_token_budget":
            assert ask(server, *argv, "ab") != 0
            assert "thinking_token_budget is 5; this model's answers" in capsys.readouterr().err
            continue
        assert ask(server, "--max-tokens", "6", *argv, "ab") == 0
        if name == "structured_outputs":
            assert "[a-z]+" in server.submitted.constraint
        else:
            assert getattr(server.submitted.params, name) == value != getattr(default, name), name


@pytest.mark.longer
def test_forms_of_answers(server, tmp_path, capsys):
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "integer", "minimum": 7}')
    assert ask(server, "--json-schema", str(schema), "ab") == 0
    assert '"minimum": 7' in server.submitted.constraint
    form = tmp_path / "form.json"
    form.write_text('{"choice": ["yes", "no"]}')
    assert ask(server, "--structured-outputs", f"@{form}", "ab") == 0
    assert "yes" in server.submitted.constraint
    for argv, said in (
        (["--structured-outputs", "{"], "it must be a JSON object"),
        (["--structured-outputs", "[]"], "it must be an object like"),
        (["--structured-outputs", '{"regexp": "a"}'], "structured_outputs.regexp"),
        (["--structured-outputs", "@/nowhere"], "No such file"),
        (["--json-schema", "/nowhere"], "No such file"),
    ):
        with pytest.raises(SystemExit):
            ask(server, *argv, "ab")
        assert said in capsys.readouterr().err


def test_kinds_of_prompts(server, monkeypatch):
    def prompt(*arguments: str) -> tuple[int, ...]:
        assert ask(server, "--max-tokens", "1", *arguments) == 0
        return server.submitted.prompt_token_ids

    assert prompt("ab", "--no-add-special-tokens") == tuple(b"ab")
    assert prompt("--token-ids", "1,2,3") == (1, 2, 3)
    assert bytes(prompt("--chat", "--system", "be brief", "hi")) == b"<system>be brief;<user>hi;<assistant>"
    styled = prompt("--chat", "--template-variables", '{"style": 1}', "hi")
    assert bytes(styled) == b"<user>hi;style=1;<assistant>"
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin\n"))
    assert prompt("-") == (BOS, *b"from stdin")
    assert prompt("--priority", "-2", "--cache-salt", "mine", "x")
    assert (server.submitted.priority, server.submitted.cache_salt) == (-2, "mine")


def test_several_texts_are_printed_one_after_the_other(server, capsys):
    assert ask(server, "--max-tokens", "3", "first", "second\nline") == 0
    assert capsys.readouterr().out == "[1] first\nabc\n[2] second line\nabc\n"
    assert ask(server, "--max-tokens", "3", "--temperature", "1", "--seed", "1", "--n", "2", "x") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], lines[2]) == ("[1.1] x", "[1.2] x")
    assert lines[1] != lines[3]


def test_json_tells_everything(server, capsys):
    assert ask(server, "--json", "--max-tokens", "3", "--logprobs", "1", "--prompt-logprobs", "0", "ab", "cd") == 0
    results = sorted(map(json.loads, capsys.readouterr().out.splitlines()), key=lambda result: result["index"])
    assert [result["prompt"] for result in results] == ["ab", "cd"]
    first = results[0]
    assert first["usage"] == {"prompt_tokens": 3, "completion_tokens": 3, "cached_tokens": 3}
    assert [entry and entry["token_id"] for entry in first["prompt_logprobs"]] == [None, *b"ab"]
    (output,) = first["outputs"]
    assert output["text"] == "abc"
    assert output["token_ids"] == [97, 98, 99]
    assert (output["finish_reason"], output["stop_reason"]) == ("length", None)
    assert output["logprobs"][0]["top"] == [{"token_id": 97, "logprob": -0.5}]


def test_usage_goes_to_standard_error(server, capsys):
    assert ask(server, "--usage", "--max-tokens", "3", "ab") == 0
    assert "prompt 3 tokens (3 cached), generated 3 tokens, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--top-p", "1.5", "x"], 2, "top_p is 1.5; it must be above 0 and at most 1"),
        (["--token-ids", "999"], 2, "token_ids is 999; token ids are integers from 0 to 259"),
        (["--token-ids", "1,x"], 2, "PROMPT is '1,x'; with --token-ids it must be a list like 1,15,7"),
        (["--max-tokens", "99999999999", "x"], 2, "--max-tokens is 99999999999; it is out of range"),
        (["--logprobs", "1", "x"], 2, "--logprobs needs --json, which shows them"),
        (["--system", "s", "x"], 2, "--system needs --chat"),
        (["--chat", "--token-ids", "1"], 2, "--chat and --token-ids exclude each other"),
        (["--chat", "--template-variables", "{", "x"], 2, "--template-variables is '{'; it must be a JSON object"),
        (["--dtype", "float32", "x"], 2, "--dtype is an option of the server; it cannot go with --server"),
        (["--skip-tokenizer-init", "x"], 2, "--skip-tokenizer-init is an option of the server"),
        (["--generation-config", "none", "x"], 2, "--generation-config is an option of the server"),
        (["--timeout", "0.2", "--max-tokens", "4000", "x"], 1, "not finished within --timeout 0.2 s"),
    ],
)
def test_errors_are_one_line(server, arguments, code, message, capsys):
    assert ask(server, *arguments) == code
    error = capsys.readouterr().err
    assert error.startswith(f"jaxinfer generate: error: {message}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "/nonexistent", "x"], 2, "there is no such folder"),
        (["--model", "some/model", "x"], 2, "hf download some/model"),
        (["--model", str(ROOT), "x"], 2, "expected config.json"),
        (["--server", "localhost:1", "x"], 1, "no server answers at localhost:1"),
    ],
)
def test_errors_about_the_source(arguments, code, message, capsys):
    assert generate.main(arguments, hub_cache=NO_CACHE) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing: PROMPT; usage: jaxinfer generate [OPTION ...] PROMPT [PROMPT ...]"),
        (["x", "--server", "a:1", "--model", "b"], "--model cannot go with --server"),
        (["x", "--seed", "1e3"], "--seed is '1e3'; it must be a whole number of 64 bits"),
        (["x", "--logit-bias", "a=1"], "--logit-bias is 'a=1'; it must be like 15=-2.5, a token id and a number"),
    ],
)
def test_bad_usage(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        generate.main(arguments, hub_cache=NO_CACHE)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"jaxinfer generate: error: {message}\n"


def local(options: FakeOptions, *arguments: str) -> int:
    return generate.main(arguments, hub_cache=NO_CACHE, build=lambda _folder, _arguments: options.build)


def test_without_a_server(model, capfd):
    """An engine process of its own; the model's generation config makes it greedy."""
    assert local(FakeOptions(), "--model", str(model), "--max-tokens", "8", "--stop", "fg", "Once") == 0
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("abcde\n", "")


def test_without_a_server_bad_input_and_failures(model, capfd):
    assert local(FakeOptions(), "--model", str(model), "--n", "0", "x") == 2
    assert capfd.readouterr().err == "jaxinfer generate: error: n is 0; it must be an integer from 1 to 64\n"
    assert local(FakeOptions(crash_at_step=3), "--model", str(model), "x") == 1
    captured = capfd.readouterr()
    assert "Traceback" in captured.err
    assert captured.err.endswith(
        "jaxinfer generate: error: the engine failed: RuntimeError: the fake engine crashes, as it was told to\n"
    )
    assert local(FakeOptions(refuse="not this one"), "--model", str(model), "x") == 2
    assert capfd.readouterr().err == "jaxinfer generate: error: not this one\n"


def test_a_closed_pipe_is_no_traceback(server):
    command = [sys.executable, "-m", "jaxinfer", "generate", "--server", server.address, "--max-tokens", "4000", "x"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    os.read(process.stdout.fileno(), 3)
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--top-p", "1.5", "x"], "top_p is 1.5; it must be above 0 and at most 1"),
        (["--token-ids", "999"], "token_ids is 999; token ids are integers from 0 to 259"),
        (
            ["--min-tokens", "9999", "--max-tokens", "9999", "x"],
            "min_tokens is 9999; with a prompt of 2 tokens at most ",
        ),
        (["--json", "--logprobs", "30", "x"], "logprobs is 30; it must be"),
        (["--skip-tokenizer-init", "x"], "prompt is 'text'; this server runs without a tokenizer"),
        (["--max-model-len", "999999", "x"], "max_model_len is 999999; the model's max_position_embeddings allows"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_an_engine_is_made(model, arguments, message, capsys):
    def build(*_: object) -> None:
        pytest.fail("an engine was made")

    assert generate.main(["--model", str(model), *arguments], hub_cache=NO_CACHE, build=build) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"jaxinfer generate: error: {message}")
    assert error.count("\n") == 1
