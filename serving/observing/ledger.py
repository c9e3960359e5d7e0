"""The usage ledger: one line of JSON for each finished request, appended to a file that survives a kill.

A line is written whole or, after a crash in the middle of a write, cut off at the next start: see serving.append_file.
What `written` counts is in the file exactly once. The event loop only queues lines; a thread writes them, many at once
when they come fast. Written lines are safe from the end of the process at once, and from a power cut after the fsync
that follows within FSYNC_SECONDS. A full file is renamed to NAME.000001, NAME.000002, ..., and none of them is ever
removed.
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
from serving.append_file import MAX_LINE, AppendFile, ForeignFile
from serving.observing.logs import milliseconds
from serving.observing.record import RequestRecord

_LOG = logging.getLogger("serving.ledger")

MAX_BYTES = 64 << 20  # of one file
FSYNC_SECONDS = 1.0
_RETRY_SECONDS = 1.0
_MAX_PENDING = 100_000  # lines kept while the disk takes none
_BATCH = 1000
_CLOSE_SECONDS = 5.0


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
        "door": record.origin.server,
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "completion_tokens": record.output_tokens,
        "queue_ms": milliseconds(record.queue_seconds),
        "device_ms": milliseconds(record.device_seconds),
        "finish_reason": record.finish_reason,
    }


class Ledger:
    """Appends to `path`; one process at a time. Raises LedgerError when it cannot. `close` writes what is left.

    what: the file's name in messages; the audit log is kept in the same way. mark: a field that its lines have and
    those of other files do not."""

    def __init__(
        self, path: Path, max_bytes: int = MAX_BYTES, what: str = "usage ledger", mark: str | None = None
    ) -> None:
        self.path, self._what, self._mark = path, what, mark
        self.written = self.lost = 0
        self._max_bytes = max_bytes
        self._pending: deque[bytes] = deque()
        self._wake = threading.Event()
        self._closing, self._deadline = False, 0.0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._look()
            self._lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._open()
        except BlockingIOError as error:
            raise LedgerError(f"the {what} {path} is kept by another process") from error
        except ForeignFile as error:
            raise LedgerError(f"the {what} {path} holds lines of another kind; give another file") from error
        except OSError as error:
            raise LedgerError(f"the {what} {path} cannot be written: {error.strerror or error}") from error
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def __call__(self, record: RequestRecord) -> None:
        self.add(entry(record))

    def add(self, line: dict[str, Any]) -> None:
        """Queues a line. Lines are lost, and counted, only when the disk has taken none for very long."""
        if len(self._pending) >= _MAX_PENDING:
            if not self.lost:
                _LOG.error("lines of the %s are lost from now on: %d wait for the disk", self._what, _MAX_PENDING)
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
            _LOG.error("%d lines of the %s are lost: the disk does not take them", len(self._pending), self._what)
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
                    self._file.sync()
                    synced, dirty = time.monotonic(), False
            except OSError as error:
                if not complained:
                    _LOG.error("the %s %s cannot be written now: %s", self._what, self.path, error.strerror or error)
                    complained = True
                if self._closing and time.monotonic() > self._deadline:
                    break
                time.sleep(_RETRY_SECONDS)
                self._wake.set()
        with contextlib.suppress(OSError):  # it was said above
            self._file.sync()
        self._file.close()
        os.close(self._lock)

    def _write(self) -> None:
        """Appends a batch, whole or not at all, so that the next try doubles nothing."""
        if self._file.size >= self._max_bytes:
            self._rotate()
        batch = [self._pending[i] for i in range(min(_BATCH, len(self._pending)))]
        self._file.append(b"".join(batch))
        self.written += len(batch)
        for _ in batch:
            self._pending.popleft()

    def _rotate(self) -> None:
        """The full file stays the one that is written until the next one is open: a failure in between is tried again,
        and writes to no descriptor that is closed."""
        full = self._file
        full.sync()
        if self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(full.descriptor)):
            found = (path.suffix[1:] for path in self.path.parent.glob(self.path.name + ".*"))
            number = max((int(suffix) for suffix in found if suffix.isdigit()), default=0) + 1
            os.rename(self.path, self.path.with_name(f"{self.path.name}.{number:06d}"))
        self._open()
        full.close()

    def _look(self) -> None:
        """What cannot be kept leaves nothing behind, not even a lock."""
        if self.path.exists() and not self.path.is_file():
            raise LedgerError(f"the {self._what} {self.path} is no file; it must be one that can be appended to")
        with contextlib.closing(AppendFile(self.path)) as file:
            file.whole(_is_line)
            first = os.pread(file.descriptor, MAX_LINE, 0).partition(b"\n")[0]
            if self._mark is not None and _is_line(first) and self._mark not in json.loads(first):
                raise ForeignFile

    def _open(self) -> None:
        file = AppendFile(self.path)
        try:
            torn = file.cut_tail(_is_line)
            folder = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # the name is safe, too
            finally:
                os.close(folder)
        except BaseException:
            file.close()
            raise
        if torn:
            _LOG.warning("the %s %s ended in %d bytes that are no line; they are cut off", self._what, self.path, torn)
        self._file = file


def _is_line(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False
