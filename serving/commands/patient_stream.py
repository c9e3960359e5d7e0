"""A text stream whose writers never wait for its reader."""

from __future__ import annotations

import contextlib
import io
import os
import queue
import threading
from typing import TextIO, cast

_MAX_QUEUED = 10_000  # texts; what comes behind them is lost
_SECONDS = 3.0  # that the end waits for a reader


def patient(stream: TextIO) -> TextIO:
    """`stream`, or one that writes to it from a thread of its own where that may have to wait: a pipe that nobody reads
    is full after 64 KiB, and whoever writes to it stands still. Close it: that writes what is left, for a few seconds
    at most. A terminal is its user's, who may stop it, and a stream of Python's alone never waits."""
    try:
        waits = not stream.isatty()
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        waits = False
    return cast(TextIO, PatientStream(stream)) if waits else stream


class PatientStream(io.TextIOBase):
    """Not for many writers of parts of lines: a text is written whole, and others follow it."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._file = stream.fileno()
        stream.flush()  # what others wrote comes first
        self._encoding = stream.encoding
        self._texts: queue.Queue[str | None] = queue.Queue(_MAX_QUEUED)
        self._thread = threading.Thread(target=self._run, name="output", daemon=True)
        self._thread.start()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        """Never waits. A text that finds no room is lost."""
        if not self.closed:
            with contextlib.suppress(queue.Full):
                self._texts.put_nowait(text)
        return len(text)

    def close(self) -> None:
        """Idempotent. Later texts are lost."""
        if self.closed:
            return
        with contextlib.suppress(queue.Full):
            self._texts.put_nowait(None)
        self._thread.join(_SECONDS)
        super().close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):  # there is no reader any more: nobody misses the rest
            while (text := self._texts.get()) is not None:
                data = text.encode(self._encoding, errors="backslashreplace")
                while data:
                    data = data[os.write(self._file, data) :]
