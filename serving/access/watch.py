"""Has a file changed? Asked once a second, which costs microseconds and works on every file system."""

from __future__ import annotations

from pathlib import Path


class Watched:
    """`changed` is true once for each change of any of the files."""

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._look()

    def _look(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_state(path) for path in self._paths)

    def changed(self) -> bool:
        before, self._seen = self._seen, self._look()
        return self._seen != before


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
