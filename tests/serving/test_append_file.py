"""Files that grow by lines: what a full disk, a short write or a kill leaves of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.device_checks import records
from serving import append_file
from serving.append_file import AppendFile, ForeignFile
from serving.batch import BatchError, Output
from serving.observing import ledger as keeping
from serving.observing.ledger import Ledger, LedgerError
from serving.observing.setup import Observing, ObservingConfig

ROOT = Path(__file__).resolve().parents[2]


class Disk:
    """Takes `room` more bytes and then none, as a full disk; can refuse to cut a file, as a failing one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, room: int = 10**9, *, cuts: bool = True) -> None:
        self.room, self.cuts = room, cuts
        self._write, self._truncate = os.write, os.ftruncate
        monkeypatch.setattr(append_file.os, "write", self.write)
        monkeypatch.setattr(append_file.os, "ftruncate", self.truncate)

    def write(self, file: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = self._write(file, bytes(data)[: self.room])
        self.room -= taken
        return taken

    def truncate(self, file: int, size: int) -> None:
        if not self.cuts:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._truncate(file, size)


def answer(custom_id: str) -> bytes:
    line = {"id": "batch_req_0", "custom_id": custom_id, "response": {}, "error": None}
    return json.dumps(line, separators=(",", ":")).encode()


@pytest.mark.parametrize("room", range(8))
def test_a_write_is_whole_or_nothing_is_left_of_it(monkeypatch, tmp_path, room):
    file = AppendFile(tmp_path / "f")
    file.append(b"first\n")
    disk = Disk(monkeypatch, room)
    if room < 7:
        with pytest.raises(OSError, match="No space left"):
            file.append(b"second\n")
        assert (tmp_path / "f").read_bytes() == b"first\n"
    else:
        file.append(b"second\n")
    disk.room = 100
    file.append(b"third\n")
    assert (tmp_path / "f").read_bytes() == b"first\n" + (b"second\n" if room >= 7 else b"") + b"third\n"


def test_nothing_is_written_behind_a_torn_line_that_cannot_be_cut(monkeypatch, tmp_path):
    file = AppendFile(tmp_path / "f")
    disk = Disk(monkeypatch, 3, cuts=False)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"first\n")
    disk.room = 100
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error"):
            file.append(b"second\n")
    assert (tmp_path / "f").read_bytes() == b"fir"
    disk.cuts = True
    file.append(b"third\n")
    assert (tmp_path / "f").read_bytes() == b"third\n"


def test_a_file_that_another_program_emptied_does_not_grow_zeros(monkeypatch, tmp_path):
    file = AppendFile(tmp_path / "f")
    file.append(b"a long first line\n")
    os.truncate(tmp_path / "f", 0)
    Disk(monkeypatch, 2)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"second\n")
    assert (tmp_path / "f").read_bytes() == b""


def is_number(line: bytes) -> bool:
    return line.strip().isdigit()


@pytest.mark.parametrize(
    ("tail", "kept"),
    [
        (b"", b""),
        (b"12", b""),
        (b"x\ny\n", b""),
        (b"\0" * 200_000, b""),
        (b"12\n\0\0\n3", b"12\n"),
        (b"x" * (2 * append_file.MAX_LINE), b""),
    ],
)
def test_the_tail_is_cut_behind_the_last_line_that_is_one(tmp_path, tail, kept):
    (tmp_path / "f").write_bytes(b"1\n2\n" + tail)
    file = AppendFile(tmp_path / "f")
    assert file.cut_tail(is_number) == len(tail) - len(kept)
    assert (tmp_path / "f").read_bytes() == b"1\n2\n" + kept


def test_a_file_of_other_lines_is_left_alone(tmp_path):
    for content in (b"my notes\nof today\n", b"my notes", b'{"a": 1}\nmore\n'):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(ForeignFile):
            AppendFile(tmp_path / "f").cut_tail(is_number)
        assert (tmp_path / "f").read_bytes() == content
    (tmp_path / "f").write_bytes(b"my notes\nof today\n")
    with pytest.raises(LedgerError, match=r"the usage ledger .* holds lines of another kind"):
        Ledger(tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"my notes\nof today\n"
    with pytest.raises(LedgerError, match=r"the audit log .* holds lines of another kind"):
        Ledger(tmp_path / "f", what="audit log")
    assert os.listdir(tmp_path) == ["f"], "no lock is left"


def test_what_is_no_file_is_refused_and_no_lock_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to_null").symlink_to("/dev/null")
    before = sorted(os.listdir(tmp_path))
    for name in before:
        with pytest.raises(LedgerError, match=f"the usage ledger .*{name} is no file"):
            Ledger(tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == before


def test_lines_of_json_that_are_others_are_left_alone(tmp_path):
    """A file of data, and one file given for the other."""
    for content, config in (
        (b'{"text": "a"}\n{"text": "b"', ObservingConfig(ledger=tmp_path / "f")),
        (b'{"time": "", "event": "refused"}\n', ObservingConfig(ledger=tmp_path / "f")),
        (b'{"time": "", "request_id": "a"}\n', ObservingConfig(audit=tmp_path / "f")),
    ):
        (tmp_path / "f").write_bytes(content)
        with pytest.raises(LedgerError, match="holds lines of another kind"):
            Observing(config)
        assert (tmp_path / "f").read_bytes() == content
        assert os.listdir(tmp_path) == ["f"]


def test_ledger_and_audit_log_need_a_file_each(tmp_path):
    (tmp_path / "same").symlink_to("f")
    for other in ("f", "same"):
        with pytest.raises(LedgerError, match="the usage ledger and the audit log are both"):
            Observing(ObservingConfig(ledger=tmp_path / "f", audit=tmp_path / other))
    assert os.listdir(tmp_path) == ["same"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(LedgerError, match=r"the audit log .*folder is no file"):
        Observing(ObservingConfig(ledger=tmp_path / "f", audit=tmp_path / "folder"))
    Ledger(tmp_path / "f").close()  # the ledger that was opened beside it is let go


# -- who appends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [True, False])
def test_a_batch_goes_on_behind_a_short_write(monkeypatch, tmp_path, cuts):
    path = tmp_path / "out.jsonl"
    output = Output(path)
    output.write(answer("a"))
    disk = Disk(monkeypatch, 10, cuts=cuts)
    with pytest.raises(BatchError, match="No space left"):
        output.write(answer("b"))
    disk.room = 1000  # room again, for the other requests that are under way
    if cuts:
        output.write(answer("c"))
    else:
        with pytest.raises(BatchError, match="Input/output error"):
            output.write(answer("c"))
    output.close()
    disk.cuts = True
    again = Output(path)
    assert again.done == ({"a", "c"} if cuts else {"a"})
    again.write(answer("b"))
    again.close()
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == [*sorted(again.done), "b"]


def test_a_batchs_output_that_is_somebody_elses_text_is_not_cut(tmp_path):
    for content in (b"notes without an end", b'{"custom_id": "a"', answer("a") + b"\nnotes"):
        (tmp_path / "out").write_bytes(content)
        with pytest.raises(BatchError, match="is no answer of a batch"):
            Output(tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
    for torn in (answer("b")[:1], answer("b")[:-1], b"\0\0\0"):
        (tmp_path / "out").write_bytes(answer("a") + b"\n" + torn)
        output = Output(tmp_path / "out")
        assert output.done == {"a"}
        output.close()
        assert (tmp_path / "out").read_bytes() == answer("a") + b"\n"


@pytest.mark.parametrize("cuts", [True, False])
def test_a_ledger_holds_whole_lines_when_the_disk_comes_back(monkeypatch, tmp_path, caplog, cuts):
    monkeypatch.setattr(keeping, "_RETRY_SECONDS", 0.001)
    ledger = Ledger(tmp_path / "l")
    disk = Disk(monkeypatch, 30, cuts=cuts)
    for i in range(20):
        ledger.add({"i": i})
    wait(lambda: bool(caplog.records))
    disk.room = 10**6
    if not cuts:
        wait(lambda: ledger.written == 0)
        disk.cuts = True
    ledger.close()
    assert [json.loads(line)["i"] for line in (tmp_path / "l").read_text().splitlines()] == list(range(20))
    assert (ledger.written, ledger.lost) == (20, 0)


def test_a_ledger_whose_next_file_cannot_be_made_goes_on_with_the_full_one(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(keeping, "_RETRY_SECONDS", 0.001)
    path = tmp_path / "l"
    ledger = Ledger(path, max_bytes=8)
    ledger.add({"i": 0})
    wait(lambda: ledger.written == 1)
    real, failing = os.open, [True]

    def opens(name: object, flags: int, *more: int, **by_name: int) -> int:
        if failing[0] and Path(os.fsdecode(name)) == path:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(name, flags, *more, **by_name)  # type: ignore[arg-type]

    monkeypatch.setattr(append_file.os, "open", opens)
    ledger.add({"i": 1})
    wait(lambda: bool(caplog.records))
    ledger.add({"i": 2})
    failing[0] = False
    ledger.close()
    files = sorted(tmp_path.glob("l*"))
    assert [file.name for file in files] == ["l", "l.000001", "l.lock"]
    assert (files[1].read_text(), files[0].read_text()) == ('{"i":0}\n', '{"i":1}\n{"i":2}\n')
    assert (ledger.written, ledger.lost) == (3, 0)


def wait(until: Callable[[], bool]) -> None:

    deadline = time.monotonic() + 5
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_records_of_a_device_check_survive_a_torn_line(tmp_path):
    found = records.Records(tmp_path)
    found.add("s", "a", records.OK)
    with found.path.open("ab") as file:
        file.write(b'{"section": "s", "ca')  # its process was killed
    found.add("s", "b", records.OK)
    assert [record["case"] for record in found.read()] == ["a", "b"]


# A line on a stream that takes a part of it and then nothing for a while.
_LOGS = """
import errno, logging, os, sys
from serving.observing import logs
real, room = os.write, [25]
def write(file, data):
    if room[0] <= 0:
        raise OSError(errno.ENOSPC, "full")
    taken = real(file, data[:room[0]])
    room[0] -= taken
    return taken
logs.os.write = write
handler = logs._Writer(sys.stderr)
handler.setFormatter(logging.Formatter("%(message)s"))
for i in range(3):
    handler._write(f"line {i} is twenty long\\n") or setattr(handler, "_lost", handler._lost + 1)
room[0] = 10**6
handler.emit(logging.makeLogRecord({"msg": "the last"}))
handler.close()
"""


def test_a_line_of_the_log_is_never_written_behind_a_torn_one():
    done = subprocess.run([sys.executable, "-c", _LOGS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == [
        "line 0 is twenty long",
        "line 1 is twenty long",
        "the last",
        "1 lines of the log are lost: nobody took them in time",
    ]


# Appends lines in many small writes, so that a kill falls within one.
_SLOWLY = """
import os, sys, time
from pathlib import Path
from serving import append_file
real = os.write
def write(file, data):
    time.sleep(0.0005)
    return real(file, bytes(data)[:7])
append_file.os.write = write
file = append_file.AppendFile(Path(sys.argv[1]))
while True:
    file.append(b"0123456789" * 20 + b"\\n")
"""


def test_a_kill_within_a_line_leaves_a_tail_that_is_cut(tmp_path):
    path = tmp_path / "f"
    process = subprocess.Popen([sys.executable, "-c", _SLOWLY, str(path)], cwd=ROOT)
    wait(lambda: path.exists() and path.stat().st_size > 500 and path.stat().st_size % 201 > 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not path.read_bytes().endswith(b"\n")
    file = AppendFile(path)
    assert file.cut_tail(is_number) > 0
    file.append(b"1\n")
    assert {len(line) for line in path.read_bytes().splitlines()} == {200, 1}
