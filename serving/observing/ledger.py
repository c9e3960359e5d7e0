"""The usage ledger: one line of JSON for each finished request, appended to a file that survives a kill.

A line is written whole or, after a crash in the middle of a write, cut off at the next start; what `written` counts is
in the file exactly once. The event loop only queues lines; a thread writes them, many at once when they come fast.
Written lines are safe from the end of the process at once, and from a power cut after the fsync that follows within
FSYNC_SECONDS. A full file is renamed to NAME.000001, NAME.000002, ..., and none of them is ever removed.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from serving import json_text
from serving.observing.logs import milliseconds
from serving.observing.record import RequestRecord

_LOG = logging.getLogger("serving.ledger")

MAX_BYTES = 64 << 20  # of one file
FSYNC_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_MAX_PENDING = 100_000  # lines kept while the disk takes none
_BATCH = 1000
_CLOSE_SECONDS = 5.0
_TAIL = 1 << 20  # no line is longer


class LedgerError(Exception):
    """The ledger cannot be kept: one sentence."""


def entry(record: RequestRecord) -> dict[str, Any]:
    """The line of a request."""
    return {
        "time": datetime.datetime.fromtimestamp(record.time, datetime.UTC).isoformat(timespec="milliseconds"),
        "request_id": record.request_id,
        "tenant": record.origin.tenant,
        "user": record.origin.user,
        "model": record.model,
        "door": record.origin.door,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.output_tokens,
        "queue_ms": milliseconds(record.queue_seconds),
        "device_ms": milliseconds(record.device_seconds),
        "finish_reason": record.finish_reason,
    }


class Ledger:
    """Appends to `path`; one process at a time. Raises LedgerError when it cannot. `close` writes what is left."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self.path = path
        self.written = self.lost = 0
        self._max_bytes = max_bytes
        self._pending: deque[bytes] = deque()
        self._wake = threading.Event()
        self._closing, self._deadline = False, 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError as error:
            raise LedgerError(f"the ledger {path} is kept by another process") from error
        except OSError as error:
            raise LedgerError(f"the ledger {path} cannot be written: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def __call__(self, record: RequestRecord) -> None:
        self.add(entry(record))

    def add(self, line: dict[str, Any]) -> None:
        """Queues a line. Lines are lost, and counted, only when the disk has taken none for very long."""
        if len(self._pending) >= _MAX_PENDING:
            self.lost += 1
            return
        self._pending.append(json_text.encode(line) + b"\n")
        self._wake.set()

    def close(self) -> None:
        """Idempotent. What the disk does not take within seconds is lost, and said to be."""
        self._deadline = time.monotonic() + _CLOSE_SECONDS
        self._closing = True
        self._wake.set()
        self._thread.join(_CLOSE_SECONDS + 2 * _RETRY_SECONDS)
        if self._pending:
            self.lost += len(self._pending)
            _LOG.error("%d lines of the usage ledger are lost: the disk does not take them", len(self._pending))
            self._pending.clear()

    # -- the thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        synced, dirty, complained = time.monotonic(), False, False
        while not (self._closing and not self._pending):
            left = FSYNC_SECONDS - (time.monotonic() - synced)
            self._wake.wait(max(0.0, left) if dirty else None)
            self._wake.clear()
            try:
                while self._pending:
                    self._write()
                    dirty = True
                    complained = False
                if dirty and (self._closing or time.monotonic() - synced >= FSYNC_SECONDS):
                    os.fdatasync(self._file)
                    synced, dirty = time.monotonic(), False
            except OSError as error:
                if not complained:
                    _LOG.error("the usage ledger %s cannot be written now: %s", self.path, error.strerror or error)
                    complained = True
                if self._closing and time.monotonic() > self._deadline:
                    break
                time.sleep(_RETRY_SECONDS)
                self._wake.set()
        with contextlib.suppress(OSError):  # it was said above
            os.fsync(self._file)
        os.close(self._file)
        os.close(self._lock)

    def _write(self) -> None:
        """Appends a batch. A write that ends in the middle is taken back, so that the next try doubles nothing."""
        if self._size >= self._max_bytes:
            self._rotate()
        batch = [self._pending[i] for i in range(min(_BATCH, len(self._pending)))]
        data = b"".join(batch)
        try:
            if os.write(self._file, data) != len(data):
                raise OSError(None, "the disk took only a part")
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        self.written += len(batch)
        for _ in batch:
            self._pending.popleft()

    def _rotate(self) -> None:
        os.fsync(self._file)
        numbers = [int(p.suffix[1:]) for p in self.path.parent.glob(self.path.name + ".*") if p.suffix[1:].isdigit()]
        full = self.path.with_name(f"{self.path.name}.{max(numbers, default=0) + 1:06d}")
        os.rename(self.path, full)
        os.close(self._file)
        self._open()

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = _repair(self._file, self.path)
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name is safe, too
        finally:
            os.close(folder)


def _repair(file: int, path: Path) -> int:
    """Cuts off what a crash left of a line that was never counted as written; the file's size."""
    size = os.fstat(file).st_size
    tail = os.pread(file, _TAIL, max(0, size - _TAIL))
    good = len(tail)
    while good:
        begin = tail.rfind(b"\n", 0, good - 1) + 1
        if tail[good - 1 : good] == b"\n" and _is_line(tail[begin:good]):
            break
        good = begin
    torn = len(tail) - good
    if torn:
        os.ftruncate(file, size - torn)
        os.fsync(file)
        _LOG.warning("the usage ledger %s ended in %d bytes that are no line; they are cut off", path, torn)
    return size - torn


def _is_line(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
