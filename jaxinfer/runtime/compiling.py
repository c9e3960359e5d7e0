"""Programs on their way: obtained from their source in threads, in order of need."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from jaxinfer.runtime.executables import Executable, ExecutableSource, Lower

# Tracing holds the GIL and XLA's own threads use the other cores, so that few are worth it on few cores.
FEWEST_THREADS, MOST_THREADS = 2, 8


class Obtained(NamedTuple):
    """An executable that has not run yet. seconds: what it took."""

    name: str
    executable: Executable
    seconds: float


class Compiling:
    """Starts at once. `take` gives what is there, in the order in which it gets ready; `stop` ends it."""

    def __init__(self, jobs: Mapping[str, Lower], source: ExecutableSource) -> None:
        self._jobs = dict(jobs)
        self._source = source
        self._names = deque(self._jobs)
        self._done: queue.SimpleQueue[Obtained | Exception] = queue.SimpleQueue()
        count = min(len(self._jobs), max(FEWEST_THREADS, min(MOST_THREADS, (os.cpu_count() or 1) // 2)))
        self._threads = [threading.Thread(target=self._work, name=f"compile-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            try:
                name = self._names.popleft()
            except IndexError:
                return
            begin = time.perf_counter()
            try:
                executable = self._source.get(name, self._jobs[name])
            except Exception as error:  # told to whoever waits for it
                self._done.put(error)
                return
            self._done.put(Obtained(name, executable, time.perf_counter() - begin))

    def take(self, *, wait: bool) -> Obtained | None:
        """The next one; None where `wait` is False and none is there. Raises what obtaining it raised."""
        try:
            found = self._done.get(block=wait)
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            self.stop()
            raise found
        return found

    def stop(self) -> None:
        """Begins nothing more and waits for what has begun: a thread must not compile while its process ends."""
        self._names.clear()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
