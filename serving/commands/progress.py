"""Signs of life: bars on a terminal; elsewhere a line when something takes long, rarely enough for a log."""

from __future__ import annotations

import threading
import time

from rich.console import Console
from rich.progress import Progress as Bars

FIRST_SECONDS = 10.0  # of silence before a line
MOST_SECONDS = 60.0  # between lines of what takes long
_PLAIN_WIDTH = 200  # columns where no terminal has its own: lines of tables are not broken


def wide_console() -> Console:
    """Standard output for tables."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _PLAIN_WIDTH
    return console


class PlainLines:
    """Says what is being done after `FIRST_SECONDS` of silence, then ever more rarely up to `MOST_SECONDS`.

    What is done sooner leaves no line. A thread of its own watches the clock: importing libraries and compiling tell
    nothing while they run. Use `close` at the end.
    """

    def __init__(self, console: Console, first: float = FIRST_SECONDS, most: float = MOST_SECONDS) -> None:
        self._console, self._first, self._most = console, first, most
        self._what = ""
        self._began = self._last = time.monotonic()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._thread.start()

    def doing(self, what: str) -> None:
        """What is said when it is time to say something; the time since the start is put behind it."""
        with self._lock:
            self._what = what

    def say(self, line: str) -> None:
        """A line at once."""
        with self._lock:
            self._print(line)

    def _print(self, line: str) -> None:
        self._last = time.monotonic()
        self._console.print(line, markup=False)

    def _due(self) -> float:
        """Seconds until the next line: a quarter of the whole time so far lies between two."""
        since_start = self._last - self._began
        return self._last + min(self._most, max(self._first, since_start / 4)) - time.monotonic()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.01, self._due())):
            with self._lock:
                if self._what and self._due() <= 0 and not self._ended.is_set():
                    self._print(f"{self._what}, {time.monotonic() - self._began:.0f} s so far")
                elif not self._what:
                    self._last = time.monotonic()

    def close(self) -> None:
        """No further line. Idempotent."""
        self._ended.set()
        self._thread.join()


class ProgressView:
    """What shows the progress of one thing: bars on a terminal or plain lines elsewhere, whichever was made."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = None
        self._lines: PlainLines | None = None

    def close(self) -> None:
        """Leaves the terminal in order; idempotent."""
        if self._bars is not None:
            self._bars.stop()
            self._bars = None
        if self._lines is not None:
            self._lines.close()
            self._lines = None
