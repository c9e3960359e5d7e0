"""`jaxinfer batch`: every request gets one line, whatever happens in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from serving.commands.batch import main
from tests.fakes import write_model

ROOT = Path(__file__).resolve().parents[2]
CODE = "import sys; from tests.fakes import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny")


def command(model: Path, source: Path, output: Path, *arguments: str, **options: Any) -> list[str]:
    """`jaxinfer batch` with the fake engine; keywords are FakeOptions'."""
    flags = ["--model", str(model), *arguments]
    return [sys.executable, "-c", CODE, json.dumps(options), "batch", str(source), str(output), *flags]


def run(*arguments: Any, **options: Any) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments, **options), cwd=ROOT, capture_output=True, text=True, timeout=60)


def refused(capsys, *arguments: Any) -> str:
    """What the command says when it refuses, without starting anything."""
    assert main(list(map(str, arguments)), hub_cache=Path("/nonexistent")) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    return said


def request(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    answers = {line["custom_id"]: line for line in lines}
    assert len(answers) == len(lines)  # none is doubled
    return answers


def test_every_kind_of_request_is_answered_or_refused(model, tmp_path):
    chat = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 3}
    source = write(
        tmp_path / "in.jsonl",
        request("text", prompt="x", temperature=0, max_tokens=5, model="tiny", unheard_of=1, store=True),
        "",
        {**request("chat", "/v1/chat/completions", **chat), "note": "mine"},
        request("response", "/v1/responses", input="x", temperature=0, max_output_tokens=4),
        request("bad", prompt="x", temperature=-1),
        request("no such model", prompt="x", model="gpt-4"),
        request("stream", prompt="x", stream=True),
    )
    output = tmp_path / "out.jsonl"
    done = run(model, source, output)
    assert (done.returncode, done.stdout) == (0, "")
    assert "6 answered, 3 of them refused;" in done.stderr
    answers = read(output)
    assert {key: value["response"]["status_code"] for key, value in answers.items()} == {
        "text": 200, "chat": 200, "response": 200, "bad": 400, "no such model": 404, "stream": 400,
    }  # fmt: skip
    assert answers["text"]["response"]["body"]["choices"][0]["text"] == "abcde"
    assert answers["text"]["response"]["ignored"] == ["unheard_of", "store"]
    assert answers["chat"]["response"]["ignored"] == ["note"]
    assert "ignored" not in answers["response"]["response"]
    assert answers["chat"]["response"]["body"]["choices"][0]["message"]["content"] == "abc"
    assert answers["response"]["response"]["body"]["output"][0]["content"][0]["text"] == "abcd"
    assert answers["bad"]["response"]["body"]["error"]["param"] == "temperature"
    assert {line["error"] for line in answers.values()} == {None}
    assert len({line["id"] for line in answers.values()}) == 6
    before = output.read_bytes()
    again = run(model, source, output)
    assert again.returncode == 0
    assert "0 answered; 6 had their line already" in again.stderr
    assert output.read_bytes() == before


@pytest.mark.parametrize("cut", [*(pytest.param(cut, marks=pytest.mark.longer) for cut in (0, 20)), 1])
def test_a_kill_loses_and_doubles_nothing(model, tmp_path, cut):
    """cut: bytes that are missing at the end, as when the kill hits a write."""
    source = write(
        tmp_path / "in.jsonl", *(request(str(i), prompt="x", temperature=0, max_tokens=20) for i in range(120))
    )
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(
        command(model, source, output, step_seconds=0.01), cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while not output.exists() or output.read_bytes().count(b"\n") < 10:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    if cut:
        os.truncate(output, output.stat().st_size - cut)
    whole = output.read_bytes().count(b"\n")
    assert 9 <= whole < 120
    first = output.read_bytes()[: output.read_bytes().rindex(b"\n") + 1]
    done = run(model, source, output)
    assert done.returncode == 0, done.stderr
    assert f"{120 - whole} answered; {whole} had their line already" in done.stderr
    assert output.read_bytes().startswith(first)  # nothing was done again
    answers = read(output)
    assert set(answers) == {str(i) for i in range(120)}
    texts = {line["response"]["body"]["choices"][0]["text"] for line in answers.values()}
    assert texts == {"abcdefghijklmnopqrst"}


def test_an_engine_that_fails_leaves_the_rest_for_another_run(model, tmp_path):
    source = write(
        tmp_path / "in.jsonl", *(request(str(i), prompt="x", temperature=0, max_tokens=10) for i in range(30))
    )
    output = tmp_path / "out.jsonl"
    failed = run(model, source, output, crash_at_step=35, step_seconds=0.01)  # time to write what is done
    assert failed.returncode == 1
    assert "requests are left; the same command goes on with them" in failed.stderr.splitlines()[-1]
    assert 0 < len(read(output)) < 30
    assert run(model, source, output).returncode == 0
    assert {line["response"]["status_code"] for line in read(output).values()} == {200}
    assert len(read(output)) == 30


GOOD = request("a", prompt="x")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([GOOD, "{"], "line 2: "),
        ([GOOD, "[]"], "line 2: Expected `object`, got `array`"),
        ([{**GOOD, "custom_id": 5}], "line 1: Expected `str`, got `int` - at `$.custom_id`"),
        ([{**GOOD, "custom_id": ""}], "line 1: custom_id has 0 characters"),
        ([{**GOOD, "method": "GET"}], "line 1: method is 'GET'; it must be POST"),
        ([{**GOOD, "url": "/v1/embeddings"}], "url is '/v1/embeddings'; it must be one of /v1/completions,"),
        (
            [{"custom_id": "", "method": "post", "url": "/v1/x", "body": {}}],
            "line 1: 3 faults: (1) custom_id has 0 characters; 1 to 512 are allowed; (2) method is 'post'; it must be "
            "POST; (3) url is '/v1/x'; it must be one of",
        ),
        ([GOOD, "", GOOD], "line 3: custom_id is 'a', as in line 1"),
    ],
)
def test_a_bad_input_is_found_before_any_work(capsys, tmp_path, lines, words):
    source = write(tmp_path / "in.jsonl", *lines)
    assert words in refused(capsys, source, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


def test_what_a_line_has_beside_its_request_is_refused_where_unknown_fields_are(capsys, tmp_path):
    source = write(tmp_path / "in.jsonl", GOOD, {**GOOD, "custom_id": "b", "x": 1})
    said = refused(capsys, source, tmp_path / "out.jsonl", "--unknown-fields", "refuse")
    assert "line 2: Object contains unknown field `x`" in said


def test_an_input_that_cannot_be_read_twice_is_refused_before_any_work(capsys, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    holder = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nobody waits for a writer
    os.write(holder, json.dumps(GOOD).encode() + b"\n")
    assert "it is no file, and is read twice" in refused(capsys, tmp_path / "pipe", tmp_path / "out.jsonl")
    os.close(holder)
    assert not (tmp_path / "out.jsonl").exists()


def test_an_output_that_is_not_this_batchs_is_left_alone(capsys, tmp_path):
    source = write(tmp_path / "in.jsonl", GOOD)
    notes = write(tmp_path / "notes.txt", "my notes")
    for output, words in (
        (notes, "notes.txt line 1 is no answer of a batch"),
        (source, "in.jsonl line 1 is no answer of a batch"),
        (
            write(tmp_path / "other", {"custom_id": "b", "response": {}, "error": None}),
            "an answer to custom_id 'b', which",
        ),
        (Path("/dev/null"), "/dev/null is no file"),
        (tmp_path / "none" / "out", "No such file or directory"),
    ):
        before = output.read_bytes() if output.exists() else None
        assert words in refused(capsys, source, output)
        assert before is None or output.read_bytes() == before
    assert "cannot read" in refused(capsys, tmp_path / "none", tmp_path / "out")


def test_a_full_disk_is_one_clear_error(model, tmp_path):
    source = write(tmp_path / "in.jsonl", *(request(str(i), prompt="x", temperature=0) for i in range(20)))
    output = tmp_path / "out.jsonl"
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)); "
    arguments = command(model, source, output)
    arguments[2] = limit + arguments[2]
    failed = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert failed.returncode == 1
    assert f"cannot write {output}: File too large" in failed.stderr
    assert run(model, source, output).returncode == 0
    assert len(read(output)) == 20


def test_two_runs_do_not_write_one_file(model, capsys, tmp_path):
    source = write(tmp_path / "in.jsonl", request("a", prompt="x", temperature=0, max_tokens=400))
    output = tmp_path / "out.jsonl"
    process = subprocess.Popen(command(model, source, output, step_seconds=0.01), cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while not output.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "another process is writing it" in refused(capsys, source, output)
    process.kill()
    process.communicate()
