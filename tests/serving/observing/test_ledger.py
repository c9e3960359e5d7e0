"""The usage ledger: its lines, its sums, and what is left of it after a bad day."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from serving.observing import ledger as keeping
from serving.observing.ledger import Ledger, LedgerError
from serving.observing.setup import ObservingConfig
from tests.fakes import FakeOptions, write_model
from tests.serving.harness import collect, greedy, run
from tests.serving.http.harness import HttpServer, http_serving
from tests.serving.observing.test_metrics import Scrape, quiet
from tests.serving.test_processes import ROOT, Stream, server


def lines(path: Path) -> list[dict[str, object]]:
    """Of all files, the oldest first."""
    files = [*sorted(p for p in path.parent.glob(path.name + ".*") if p.suffix[1:].isdigit()), path]
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_every_request_has_a_line_and_the_sums_are_the_metrics(tmp_path):
    path = tmp_path / "usage.jsonl"

    async def test():
        async with http_serving(FakeOptions(step_seconds=0.002), observing=ObservingConfig(ledger=path)) as s:
            await mixed_requests(s)
            return await quiet(s)

    found: list[Scrape] = []

    async def main():
        found.append(await test())

    run(main())
    (m,) = found
    entries = lines(path)
    assert len(entries) == 6
    assert set(entries[0]) == {
        *("time", "request_id", "tenant", "user", "model", "door", "prompt_tokens", "cached_tokens"),
        *("completion_tokens", "queue_ms", "device_ms", "finish_reason"),
    }
    assert Counter(e["user"] for e in entries) == {"ann": 2, "bob": 1, "": 3}
    assert Counter(e["door"] for e in entries) == {"http": 5, "grpc": 1}
    assert Counter(e["finish_reason"] for e in entries) == {"length": 4, "stop": 1, "abort": 1}
    for kind in ("prompt", "cached", "completion"):
        total = sum(e[f"{kind}_tokens"] for e in entries)
        assert m("tenant_tokens_total", tenant="default", kind=kind) == total > 0, kind
    assert m("generation_tokens_total") == sum(e["completion_tokens"] for e in entries)
    assert m("prompt_tokens_total") == sum(e["prompt_tokens"] for e in entries)
    seconds = sum(e["device_ms"] for e in entries) / 1000
    assert seconds > 0
    assert m("tenant_device_seconds_total", tenant="default") == pytest.approx(seconds, abs=1e-5)
    assert m("request_queue_time_seconds_sum") == pytest.approx(sum(e["queue_ms"] for e in entries) / 1000, abs=1e-5)


async def mixed_requests(s: HttpServer) -> None:
    """Six that become lines, two that are refused."""
    await s.complete(user="ann", n=2)
    await s.chat(safety_identifier="ann")
    await s.complete(user="bob", stop="cd", max_tokens=50)
    await s.post("/v1/completions", prompt=["one", "two"], temperature=0, max_tokens=3, stream=True)
    call = s.grpc.stub.Generate(greedy(max_tokens=2000))
    await call.read()
    await call.read()
    call.cancel()
    await s.refused("/v1/completions", prompt="x", max_tokens=-1)
    assert (await s.post("/v1/completions", prompt="x", min_tokens=5000, max_tokens=5000, n=5)).status_code == 400


def test_full_files_are_renamed_and_none_is_removed(tmp_path):
    path = tmp_path / "usage.jsonl"
    for start in (0, 50):  # numbers go on after a restart
        ledger = Ledger(path, max_bytes=200)
        for i in range(start, start + 50):
            ledger.add({"i": i})
            while ledger.written + ledger.lost < i - start + 1:
                time.sleep(0.0005)
        ledger.close()
    assert [line["i"] for line in lines(path)] == list(range(100))
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files[:3] == ["usage.jsonl", "usage.jsonl.000001", "usage.jsonl.000002"]
    assert all(p.stat().st_size <= 220 for p in tmp_path.iterdir())


@pytest.mark.parametrize("torn", [b'{"i": 3, "us', b'{"i": 3}', b"\0" * 100, b'{"i": 3\n', b"\xff\xfe\n"])
def test_a_torn_line_is_cut_off_at_the_next_start(tmp_path, caplog, torn):
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b'{"i": 1}\n{"i": 2}\n' + torn)
    ledger = Ledger(path)
    ledger.add({"i": 4})
    ledger.close()
    assert [line["i"] for line in lines(path)] == [1, 2, 4]
    assert f"{len(torn)} bytes that are no line" in caplog.text


def test_a_whole_file_is_left_as_it_is(tmp_path, caplog):
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b'{"i": 1}\n' * 300_000)  # longer than what is looked at
    Ledger(path).close()
    assert path.stat().st_size == 9 * 300_000
    assert not caplog.records


def test_a_full_disk_delays_lines_and_doubles_none(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "_RETRY_SECONDS", 0.01)
    path = tmp_path / "usage.jsonl"
    ledger = Ledger(path)
    real, failures = os.write, [3]

    def write(file: int, data: bytes) -> int:
        if not failures[0]:
            return real(file, data)
        failures[0] -= 1
        if failures[0] == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data[: len(data) // 2])  # the disk fills up in the middle

    monkeypatch.setattr(keeping.os, "write", write)
    for i in range(100):
        ledger.add({"i": i})
    ledger.close()
    assert [line["i"] for line in lines(path)] == list(range(100))
    assert (ledger.written, ledger.lost) == (100, 0)
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1  # one clear error


def test_a_disk_that_stays_full_loses_lines_and_says_how_many(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(keeping, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(keeping, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(keeping, "_MAX_PENDING", 10)
    ledger = Ledger(tmp_path / "usage.jsonl")

    def write(file: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeping.os, "write", write)
    for i in range(25):
        ledger.add({"i": i})
    ledger.close()
    assert (ledger.written, ledger.lost) == (0, 25)
    assert "No space left on device" in caplog.text
    assert "10 lines of the usage ledger are lost" in caplog.text


def test_two_processes_do_not_share_a_ledger(tmp_path):
    ledger = Ledger(tmp_path / "usage.jsonl")
    with pytest.raises(LedgerError, match="kept by another process"):
        Ledger(tmp_path / "usage.jsonl")
    ledger.close()
    Ledger(tmp_path / "usage.jsonl").close()


def test_a_ledger_that_cannot_be_written_stops_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written: "):
        Ledger(tmp_path / "file" / "usage.jsonl")


# Adds lines for ever, and says on stdout how many are counted as written.
_WRITER = """
import sys, time
from pathlib import Path
from serving.observing.ledger import Ledger
path, first = Path(sys.argv[1]), int(sys.argv[2])
ledger = Ledger(path, max_bytes=20_000)
i = first
while True:
    ledger.add({"i": i, "padding": "x" * (i % 300)})
    i += 1
    print(first + ledger.written, flush=True)
    if i % 20 == 0:
        time.sleep(0.001)
"""


def test_sigkill_loses_no_line_that_was_counted_and_doubles_none(tmp_path):
    path = tmp_path / "usage.jsonl"
    first = 0
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), str(first)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        counted = first
        begin = time.monotonic()
        for line in process.stdout:
            counted = int(line)
            if counted > first + 300 and time.monotonic() - begin > 0.05 * attempt:
                break
        process.send_signal(signal.SIGKILL)
        counted = max([counted, *(int(line) for line in process.stdout.read().splitlines()[:-1])])
        process.wait()
        process.stdout.close()
        Ledger(path).close()  # repairs what it finds
        numbers = [line["i"] for line in lines(path)]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) >= counted > first
        first = len(numbers)


def test_a_killed_server_keeps_what_it_wrote(tmp_path):
    path = tmp_path / "usage.jsonl"
    model = write_model(tmp_path / "tiny")
    for count in (3, 6):
        with server(model, "--ledger", str(path)) as s:
            address = s.address()
            for _ in range(3):
                assert Stream(address, greedy(max_tokens=4)).ended().error is None
            deadline = time.monotonic() + 10
            while len(lines(path)) < count and time.monotonic() < deadline:
                time.sleep(0.01)
            s.process.send_signal(signal.SIGKILL)
            s.process.wait()
        assert [line["completion_tokens"] for line in lines(path)] == [4] * count


def test_two_servers_cannot_keep_one_ledger(tmp_path):
    path = tmp_path / "usage.jsonl"
    model = write_model(tmp_path / "tiny")
    ledger = Ledger(path)
    with server(model, "--ledger", str(path)) as s:
        assert s.exit_code() == 2
        assert "is kept by another process" in s.output
    ledger.close()


def test_a_request_of_the_command_line_has_no_ledger():
    async def test():
        async with http_serving() as s:
            await collect(s.grpc.stub.Generate(greedy()))
            assert s.grpc.server._observing.ledger is None

    run(test())
