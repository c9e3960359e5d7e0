"""What `serve` shows when it starts, and the signs of life of what takes long, where no terminal is."""

from __future__ import annotations

import io
import json
import os
import shlex
import time
from collections.abc import Iterator
from typing import TextIO

import pytest
from rich.console import Console

from jaxinfer.messages import EngineInfo, Progress
from serving.commands import patient_stream
from serving.commands.console import ServeConsole, StartUpView
from serving.commands.progress import PlainLines
from tests.fakes import write_model
from tests.serving.harness import full_pipe

INFO = EngineInfo(
    model="tiny",
    architecture="LlamaForCausalLM",
    vocab_size=260,
    max_model_len=2048,
    max_num_seqs=64,
    max_num_batched_tokens=256,
    page_size=64,
    num_pages=2049,
    dtype="bfloat16",
    tensor_parallel_size=1,
    device="1 x cpu",
    backends={"paged_attention": "xla"},
    eos_token_ids=(2,),
    notes=("KV pool: 2,048 pages of 64 tokens, 384.2 MiB: room for 64 sequences of 2,048 tokens",),
    executables=(("step[8 tokens, 8 rows]", 12.19), ("admit", 1.36)),
    extra={},
)


@pytest.fixture
def full() -> Iterator[tuple[int, TextIO]]:
    """The reading end of a pipe that is full, and its writing end."""
    reading, writing = full_pipe()
    with open(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def test_nobody_waits_for_a_reader(full, monkeypatch):
    monkeypatch.setattr(patient_stream, "_SECONDS", 0.05)
    monkeypatch.setattr(patient_stream, "_MAX_QUEUED", 4)
    reading, stream = full
    before = time.monotonic()
    never_read, told = patient_stream.patient(stream), patient_stream.patient(stream)
    for i in range(9):
        never_read.write("y" * 100)
        told.write(f"ünïcode {i}\n")
    never_read.close()
    assert time.monotonic() - before < 2
    never_read.write("behind its end")
    text = b""
    while b"3" not in text:
        text += os.read(reading, 1 << 16)
    told.close()
    assert "ünïcode 0\nünïcode 1\nünïcode 2\nünïcode 3\n" in text.decode().replace("y", "")
    assert io.StringIO is type(patient_stream.patient(io.StringIO()))


def started(tmp_path, http: str | None = "127.0.0.1:8000", **settings: bool) -> str:
    stream = io.StringIO()
    console = ServeConsole("jaxinfer", stream, **settings)
    console.start("1.2", "tiny", str(write_model(tmp_path / "tiny")))
    for progress in (
        Progress("load", 3 << 20, 3 << 20, "x"),
        Progress("warmup", 1, 2, "step"),
        Progress("warmup", 2, 2, "admit"),
    ):
        console.progress(progress)
    console.ready(INFO, "tiny", "127.0.0.1:50051", http, 1.5)
    console.close()
    return stream.getvalue()


def test_a_start_is_told_without_what_only_a_debugger_reads(tmp_path):
    shown = started(tmp_path)
    assert "loading weights: 3.0 MiB in " in shown
    assert "compiling: 2 programs in " in shown
    assert shown.count(" pages") == 1  # one count of pages, and the same everywhere
    assert "KV pool      131,072 tokens\n" in shown
    assert "to compile" not in shown
    detailed = started(tmp_path / "again", detailed=True)
    assert "executables  step[8 tokens, 8 rows]   12.19 s to compile\n             admit " in detailed


def lines_to_paste(shown: str) -> list[list[str]]:
    return [shlex.split(line) for line in shown.splitlines() if line.startswith("    ")]


def test_lines_to_paste_are_for_both_ports(tmp_path):
    generate, curl = lines_to_paste(started(tmp_path))
    assert generate == ["jaxinfer", "generate", "--server", "localhost:50051", "--chat", "What is 347 + 586?"]
    assert curl[:4] == ["curl", "localhost:8000/v1/chat/completions", "-H", "Content-Type: application/json"]
    assert json.loads(curl[curl.index("-d") + 1]) == {"messages": [{"role": "user", "content": "What is 347 + 586?"}]}


def test_lines_to_paste_say_what_a_server_with_tls_and_keys_wants(tmp_path):
    shown = started(tmp_path, secure=True, keys=True)
    generate, curl = lines_to_paste(shown)
    assert generate[3:8] == ["localhost:50051", "--tls-ca", "CA.pem", "--api-key-file", "KEY.txt"]
    assert curl[:4] == ["curl", "--cacert", "CA.pem", "https://localhost:8000/v1/chat/completions"]
    assert "Authorization: Bearer $KEY" in curl
    assert "open https://localhost:8000/ in a browser" in shown


def test_without_http_nothing_of_it_is_named(tmp_path):
    shown = started(tmp_path, http=None)
    assert len(lines_to_paste(shown)) == 1
    assert "http:" not in shown
    assert "curl" not in shown


def test_a_brief_view_says_nothing_of_what_is_quick():
    stream = io.StringIO()
    view = StartUpView(Console(file=stream), brief=True)
    view.start()
    view.show(Progress("load", 1, 2, "x"))
    view.show(Progress("load", 2, 2, "x"))
    view.close()
    assert stream.getvalue() == ""


def waited_for(stream: io.StringIO, lines: int) -> list[str]:
    deadline = time.monotonic() + 20
    while stream.getvalue().count("\n") < lines and time.monotonic() < deadline:
        time.sleep(0.005)
    return stream.getvalue().splitlines()


def test_what_takes_long_is_told_while_nothing_else_is_said():
    stream = io.StringIO()
    lines = PlainLines(Console(file=stream, width=200), first=0.02, most=0.05)
    lines.doing("starting the engine")
    assert waited_for(stream, 2)[0] == "starting the engine, 0 s so far"
    lines.doing("compiling: 1 of 7 programs")
    assert "compiling: 1 of 7 programs, 0 s so far" in waited_for(stream, 4)
    lines.close()
    lines.close()
    told = stream.getvalue()
    time.sleep(0.1)
    assert stream.getvalue() == told


def test_lines_become_rarer_and_a_line_at_once_puts_the_next_off():
    stream = io.StringIO()
    lines = PlainLines(Console(file=stream), first=10.0, most=60.0)
    lines.doing("work")
    assert 9 < lines._due() <= 10
    lines._began -= 100  # 100 s of work, the last line just now
    assert 24 < lines._due() <= 25.5
    lines._began -= 1000
    assert 59 < lines._due() <= 60
    lines._last -= 70
    assert lines._due() < 0
    lines.say("a stage has ended")
    assert lines._due() > 59
    assert stream.getvalue() == "a stage has ended\n"
    lines.close()
