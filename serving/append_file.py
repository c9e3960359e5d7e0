"""A file that grows by whole lines and holds no torn one for longer than the disk forces it to.

A write can end in the middle: the disk is full, a quota or a size limit is reached, the process is killed. What is
written behind a torn line makes one unreadable line of two, so a write is whole or taken back, nothing is written while
a torn tail cannot be taken back, and whoever opens the file again cuts off what a kill left.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

MAX_LINE = 1 << 20  # bytes; what is longer is no line
_BLOCK = 64 << 10


class ForeignFile(Exception):
    """The file's lines are none of those that are appended here; nothing was changed."""


class AppendFile:
    """Appends to `path`, which it creates with `mode`; one process at a time (whoever uses it locks). Raises OSError.

    Opening cuts nothing: `cut_tail` does, or `cut` where the caller has read the lines itself.
    """

    def __init__(self, path: Path, mode: int = 0o600) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        self._torn: int | None = None  # the size to go back to before anything is written

    @property
    def size(self) -> int:
        """Bytes, read from the file: another program may have cut it (logrotate's copytruncate)."""
        return os.fstat(self.descriptor).st_size if self._torn is None else self._torn

    def append(self, data: bytes) -> None:
        """Writes all of `data`, or raises OSError with nothing of it left in the file. Where even taking back fails,
        every later call tries that first and raises until it has succeeded."""
        self._mend()
        before = self.size
        rest = memoryview(data)
        try:
            while rest:
                taken = os.write(self.descriptor, rest)
                if not taken:
                    raise OSError(None, "the disk took only a part")
                rest = rest[taken:]
        except BaseException:  # a signal's exception tears a line as well
            self._torn = before
            with contextlib.suppress(OSError):  # the error that tore the line is told; the next call mends or raises
                self._mend()
            raise

    def _mend(self) -> None:
        if self._torn is not None:
            os.ftruncate(self.descriptor, min(self._torn, os.fstat(self.descriptor).st_size))
            self._torn = None

    def cut(self, size: int) -> None:
        """Cuts the file to `size` bytes."""
        os.ftruncate(self.descriptor, size)
        os.fsync(self.descriptor)

    def cut_tail(self, is_line: Callable[[bytes], bool]) -> int:
        """Cuts off what stands behind the last line that is one; how many bytes that was. Raises as `whole` does."""
        size = self.size
        good = self.whole(is_line)
        if good < size:
            self.cut(good)
        return size - good

    def whole(self, is_line: Callable[[bytes], bool]) -> int:
        """Bytes up to the end of the last line that is one; the file stays as it is.

        Raises ForeignFile where no line of the file is one and it is more than the torn beginning of one."""
        size = self.size
        good = _end_of_lines(self.descriptor, size, is_line)
        if size and good == 0 and not _may_be_torn(os.pread(self.descriptor, MAX_LINE, 0)):
            raise ForeignFile
        return good

    def sync(self) -> None:
        """What was appended survives a power cut."""
        os.fdatasync(self.descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


def _end_of_lines(file: int, size: int, is_line: Callable[[bytes], bool]) -> int:
    """Where the last line ends that is one; 0 where none is."""
    end = size
    while end:
        begin = _begin_of_line(file, end)
        if end - begin <= MAX_LINE:
            line = os.pread(file, end - begin, begin)
            if line.endswith(b"\n") and is_line(line):
                return end
        end = begin
    return 0


def _begin_of_line(file: int, end: int) -> int:
    """Where the line begins whose last byte is before `end`."""
    stop = end - 1  # its own line feed does not count
    while stop > 0:
        start = max(0, stop - _BLOCK)
        found = os.pread(file, stop - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0


def _may_be_torn(data: bytes) -> bool:
    """A first line that was cut, or the zeros that a power cut leaves where data was to be."""
    return b"\0" in data or (b"\n" not in data and data.startswith(b"{"))
