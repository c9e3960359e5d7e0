"""What a killed process leaves in the persistent compilation cache.

JAX writes an entry in place and never overwrites one. Half an entry is no danger, since its compression notices, but it
would stay for ever, and its program be compiled anew at every start. So a file says while programs are being compiled,
and whoever finds one of a process that is gone drops the entries that may be torn.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_MARK = "jaxinfer-compiles-{}"  # the process's id
_ENTRIES = "*-cache"  # JAX's
WRITE_SECONDS = 10.0  # more than writing an entry takes


@contextlib.contextmanager
def compiling_into(folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Around everything that is compiled at start-up. `folder`: the cache; None does nothing."""
    if folder is None:
        yield
        return
    path = Path(folder).expanduser()
    path.mkdir(parents=True, exist_ok=True)
    for mark in path.glob(_MARK.format("*")):
        if not _alive(mark.name.rpartition("-")[2]):
            _drop_torn(path, mark)
    own = path / _MARK.format(os.getpid())
    own.touch()
    try:
        yield
    finally:
        own.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    """Of another process; this one has not begun. In another container it looks dead, and loses an entry or two."""
    return pid != str(os.getpid()) and Path("/proc", pid).exists()


def _drop_torn(folder: Path, mark: Path) -> None:
    """Entries that were being written in the last seconds of the process that left the mark."""
    with contextlib.suppress(FileNotFoundError):  # another process cleans up, too
        begin = mark.stat().st_mtime
        times = {entry: entry.stat().st_mtime for entry in folder.glob(_ENTRIES)}
        end = max(times.values(), default=0.0) - WRITE_SECONDS
        for entry, time in times.items():
            if time >= max(begin, end):
                _LOG.info("dropping %s, which a killed process may not have finished", entry.name)
                entry.unlink()
        mark.unlink()
