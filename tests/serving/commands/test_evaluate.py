"""`jaxinfer eval`: records, tables, pictures and errors over a fake server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxinfer.evaluation.plot as plot
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.evaluation.item import Kind
from jaxinfer.messages import Submit
from jaxinfer.model_path import demo_path
from jaxinfer.text import load_tokenizer
from serving.access.access import AccessConfig
from serving.access.keys import KeyLimits, add_key
from serving.commands import evaluate
from serving.commands.evaluation_spec import parse_spec
from serving.commands.parsing import CommandError
from serving.evaluation.server_source import ServerSource
from serving.server import Server, ServerConfig
from tests.fakes import FakeOptions, write_model
from tests.jaxinfer.evaluation.fake_source import KINDS
from tests.serving import harness
from tests.serving.commands.background import Background

NO_CACHE = Path("/nonexistent")
REPLY = "Twice is 7."


@pytest.fixture(scope="module")
def server() -> Iterator[harness.Running]:
    """Answers everything with `REPLY`; its defaults would repeat nothing and sample, were they not overruled."""
    options = FakeOptions(script=REPLY, eos_after=len(REPLY))
    defaults = {"temperature": 0.9, "repetition_penalty": 1.5, "max_tokens": 3}
    background = Background(lambda: harness.serving(options, name="the-fake", sampling_defaults=defaults))
    yield background.running
    background.close()


def stories(count: int, seed: int) -> list[str]:
    return [f"story {i} of seed {seed}" for i in range(count)]


def ask(*argv: str, kinds: dict[str, Kind] = KINDS) -> int:
    return evaluate.main(argv, hub_cache=NO_CACHE, kinds=lambda: kinds, stories=stories)


def ask_server(server: harness.Running, *argv: str) -> int:
    return ask("--server", server.server.address, *argv)


# -- against a server -----------------------------------------------------------------------------------------------


def test_record_and_table_of_a_server(server, tmp_path, capsys):
    path = tmp_path / "quality.json"
    items = tmp_path / "items.jsonl"
    lines = [{"prompt": f"Twice {n}?", "answer": n, "match": "number", "kind": "sevens"} for n in (7, 8, 7, 9)]
    items.write_text("\n".join(map(json.dumps, lines)))
    argv = ["--items", str(items), "--tasks", "double,json", "--limit", "5", "--texts", "2", "--json", str(path)]
    assert ask_server(server, *argv) == 0
    record = json.loads(path.read_text())
    assert list(record["tasks"]) == ["double", "json", "sevens"]
    sevens = record["tasks"]["sevens"]
    assert (sevens["accuracy"], sevens["n"], sevens["right"], sevens["baseline"]) == (0.5, 4, 2, 0.5)
    assert 0 < sevens["low"] < 0.5 < sevens["high"] < 1
    assert record["tasks"]["double"]["n"] == 5
    assert record["tasks"]["json"]["unanswered"] == 5
    assert record["json_validity"] == {"share": 0.0, "low": 0.0, "high": pytest.approx(0.434, abs=1e-3), "n": 5}
    # The fake finds every token at -0.5, one token a byte; <s> has no score and no bytes.
    size = sum(len(text) for text in stories(2, 0))
    found = record["perplexity"]
    assert (found["tokens"], found["bytes"], found["texts"]) == (size, size, 2)
    assert found["per_token"] == pytest.approx(math.exp(0.5))
    assert found["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    assert record["model"] == "the-fake"
    assert record["where"] == server.server.address
    assert record["settings"]["dtype"] == "float32"
    assert record["prompts"] == "chat template"
    assert record["asked"]["limit"] == 5
    assert {"jaxinfer", "python", "jax", "numpy"} <= record["versions"].keys()
    assert record["date"].endswith("+00:00")
    shown = capsys.readouterr().out
    assert "sevens" in shown
    assert "50.0 %" in shown
    assert "JSON validity: 0.0 % of 5" in shown
    assert "perplexity 1.649 per token" in shown
    assert "responses without an answer to be found: json 5" in shown


def test_requests_are_greedy_chats_in_order(server, tmp_path):
    answers = tmp_path / "answers.jsonl"
    assert ask_server(server, "--tasks", "double", "--limit", "9", "--texts", "0", "--answers", str(answers)) == 0
    sent = server.received(Submit)[-9:]
    assert {(s.params.temperature, s.params.repetition_penalty, s.params.max_tokens) for s in sent} == {(0.0, 1.0, 16)}
    written = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(written) == 9
    prompts = {f"<user>{line['messages'][0]['content']};<assistant>" for line in written}
    assert {bytes(s.prompt_token_ids).decode() for s in sent} == prompts
    assert all(line["response"] == REPLY and line["found"] == "7" for line in written)
    assert [line["right"] for line in written] == [line["answer"] == "7" for line in written]


def test_concurrency_is_limited(server):
    source = ServerSource(server.server.address, concurrency=3)
    running, most = 0, 0

    async def slow(_stub: Any, value: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.01)
        running -= 1
        return -value

    assert source._each(range(20), slow) == [-value for value in range(20)]
    assert most == 3


def test_items_that_do_not_fit_are_told(server, tmp_path, capsys):
    items = tmp_path / "items.jsonl"
    long = {"prompt": "x" * 4080, "answer": "7", "match": "number"}
    items.write_text("\n".join(map(json.dumps, [long, {**long, "prompt": "7?"}])))
    assert ask_server(server, "--items", str(items), "--texts", "0") == 0
    assert "skipped because prompt and answer do not fit the context: items 1" in capsys.readouterr().out


def test_a_picture_is_drawn(server, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "quality.png"
    assert ask_server(server, "--tasks", "double,recall", "--limit", "4", "--texts", "1", "--plot", str(path)) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000


def test_a_model_without_chat_template_is_told(tmp_path, capsys):
    folder = write_model(tmp_path / "plain")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    options = FakeOptions(script="7\nQuestion: more", eos_after=15)
    server = Server(
        ServerConfig(port=0),
        lambda: harness.ThreadEngine(options.build),
        lambda: load_tokenizer(folder),
        harness.Record(),
    )

    @contextlib.asynccontextmanager
    async def running() -> Any:
        await server.start()
        await server.wait_ready()
        yield server
        await server.stop()

    background = Background(running)
    try:
        items = tmp_path / "items.jsonl"
        items.write_text('{"prompt": "3 + 4?", "answer": "7", "match": "exact"}')
        path = tmp_path / "record.json"
        argv = ["--server", server.address, "--items", str(items), "--texts", "0", "--json", str(path)]
        assert ask(*argv) == 0
    finally:
        background.close()
    assert "no chat template" in capsys.readouterr().out
    # The answer ends where the model would ask itself the next question.
    assert json.loads(path.read_text())["tasks"]["items"]["right"] == 1


def test_a_server_that_wants_a_key_gets_it(tmp_path, capsys):
    key, _ = add_key(tmp_path / "keys.toml", "acme", ["infer"], KeyLimits())
    (tmp_path / "key.txt").write_text(key + "\n")
    options = FakeOptions(script=REPLY, eos_after=len(REPLY))
    background = Background(lambda: harness.serving(options, access=AccessConfig(keys=tmp_path / "keys.toml")))
    small = ["--tasks", "double", "--limit", "2", "--texts", "1"]
    try:
        assert ask_server(background.running, *small) == 1
        assert "key" in capsys.readouterr().err
        assert ask_server(background.running, *small, "--api-key-file", str(tmp_path / "key.txt")) == 0
    finally:
        background.close()
    assert "double" in capsys.readouterr().out


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--tasks", "double,dobule"], "--tasks names 'dobule'; tasks are double, json, recall"),
        (["--tasks", ""], "--tasks names ''; tasks are"),
        (["--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["--texts", "-1"], "--texts is -1"),
        (["--limit", "99999", "--tasks", "double"], "--limit is 99999; kind double has only about"),
        (["--items", "/nonexistent/items"], "item file /nonexistent/items cannot be read"),
        (["--json", "/nonexistent/x.json"], "--json is '/nonexistent/x.json'; it must be a file in a folder"),
        (["/nonexistent"], "MODEL is '/nonexistent'; there is no such folder"),
        (["some/model"], "hf download some/model"),
        (["--page-size", "0"], "page_size is 0; it must be a positive integer"),
        (["--attention-backend", "nope"], "backend of paged_attention is 'nope'; known: mosaic_tpu, mosaic_gpu,"),
        (["--attention-backend", "mosaic_gpu"], "cannot serve this on cpu (cpu): it runs on NVIDIA GPUs only"),
        (["x", "--server", "localhost:1"], "MODEL cannot go with --server"),
        (["--server", "localhost:1", "--dtype", "float32"], "--dtype is an option of the server"),
        (["x", "--compare", "demo", "demo"], "MODEL cannot go with --compare"),
        (["--server", "x:1", "--compare", "demo", "demo"], "--server cannot go with --compare"),
        (["--compare", "demo", "demo@dtypo=float32"], "demo@dtypo=float32: unknown setting 'dtypo'; it must be one of"),
        (["--compare", "demo", "demo@dtype=int4"], "dtype is 'int4'; it must be auto, float32 or bfloat16"),
        (["--compare", "demo", "/nonexistent"], "MODEL is '/nonexistent'; there is no such folder"),
    ],
)
def test_bad_input_is_one_line(argv, message, capsys):
    small = ["--texts", "1"] if "--texts" not in argv else []
    limit = ["--limit", "1"] if "--limit" not in argv else []
    assert ask(*argv, *small, *limit) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxinfer eval: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_an_empty_item_file_is_named(tmp_path, capsys):
    (tmp_path / "empty.jsonl").write_text("\n")
    assert ask("--items", str(tmp_path / "empty.jsonl")) == 2
    assert "empty.jsonl holds no items" in capsys.readouterr().err


def test_an_absent_server_is_named(capsys):
    assert ask("--server", "localhost:1", "--limit", "1") == 1
    assert "no server answers at localhost:1" in capsys.readouterr().err


def test_a_server_without_tokenizer_is_named(capsys):
    background = Background(lambda: harness.serving(with_tokenizer=False))
    try:
        assert ask_server(background.running, "--limit", "1") == 2
    finally:
        background.close()
    assert "runs without a tokenizer" in capsys.readouterr().err


def test_a_picture_needs_matplotlib(monkeypatch, capsys):
    monkeypatch.setattr(plot.importlib.util, "find_spec", lambda _name: None)
    assert ask("--plot", "x.png") == 2
    assert "--plot needs matplotlib, which is not installed: pip install 'jaxinfer[eval]'" in capsys.readouterr().err


def test_models_whose_tokenizers_differ_are_refused(tmp_path, capsys):
    other = write_model(tmp_path / "other")
    same = write_model(tmp_path / "same")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["T"], vocab["q"] = vocab["q"], vocab["T"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert ask("--compare", str(same), str(other), "--limit", "1", "--texts", "1") == 2
    error = capsys.readouterr().err
    assert "tokenizers differ: for 'The quick" in error
    assert ask("--compare", "demo", str(same), "--limit", "1", "--texts", "1") == 2
    assert "tokenizers differ: the vocabularies have" in capsys.readouterr().err


def test_specs_are_models_with_settings(tmp_path):
    folder = write_model(tmp_path / "a@b")
    spec = parse_spec(f"{folder}@dtype=float32,tensor-parallel-size=2,enable_prefix_caching=off", {}, NO_CACHE)
    expected = RuntimeConfig(dtype="float32", tensor_parallel_size=2, enable_prefix_caching=False, max_logprobs=-1)
    assert (spec.folder, spec.runtime, spec.alternatives) == (folder, expected, 260)
    assert parse_spec(str(folder), {"page_size": 32}, NO_CACHE).runtime == RuntimeConfig(page_size=32, max_logprobs=-1)
    own = parse_spec(f"{folder}@page_size=16,max_logprobs=50", {"page_size": 32}, NO_CACHE)
    assert (own.runtime.page_size, own.alternatives) == (16, 50)
    assert parse_spec("demo", {}, NO_CACHE).folder == demo_path()
    assert parse_spec("demo@compilation_cache_dir=none", {}, NO_CACHE).runtime.compilation_cache_dir is None
    for bad, message in [
        ("demo@page_size=big", "page_size is 'big'; it must be int"),
        ("demo@page_size=none", "page_size is 'none'; it must be int"),
        ("demo@batch_invariant=1", "batch_invariant is '1'; it must be true or false"),
        ("demo@page_size=8,page_size=9", "page_size is given twice"),
        ("demo@dtype=float32,x", "'x' is not FIELD=VALUE"),
    ]:
        with pytest.raises(CommandError, match=message):
            parse_spec(bad, {}, NO_CACHE)
    with pytest.raises(ConfigError, match="page_size is 0"):
        parse_spec("demo@page_size=0", {}, NO_CACHE)
