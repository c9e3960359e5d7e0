"""The server under test, in a process of its own, and what it measures of itself.

A beat on the event loop says how long the loop did not come round. On a machine with other work the time of day says
little, so the processor time that this process used between two beats is taken as well: a stall is the less of both.
What runs beside the loop without keeping the interpreter does not stop the beat.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from tests.fakes import FakeOptions

_BEAT_SECONDS = 0.004


class Beat:
    """Appends a line of JSON to `path` at each SIGUSR1: the stalls since the last."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: Path) -> None:
        self._loop, self._path = loop, path
        self._worst: list[float] = []
        self._last = time.monotonic(), time.process_time()
        loop.add_signal_handler(signal.SIGUSR1, self._report)
        loop.call_soon(self._beat)

    def explain(self, seconds: float) -> None:
        """Tells, for each stall longer than that, what the threads were doing, and what garbage collection took."""
        threading.Thread(target=self._explain, args=(seconds,), daemon=True).start()
        began = 0.0

        def collected(phase: str, info: dict[str, int]) -> None:
            nonlocal began
            if phase == "start":
                began = time.process_time()
            elif time.process_time() - began > seconds / 2:
                print(f"garbage collection {info} took {time.process_time() - began:.3f} s", flush=True)

        gc.callbacks.append(collected)

    def _explain(self, seconds: float) -> None:
        known = threading.get_ident()
        while True:
            time.sleep(seconds / 4)
            last = self._last
            if min(time.monotonic() - last[0], time.process_time() - last[1]) < seconds:
                continue
            frames = {name: frame for name, frame in sys._current_frames().items() if name != known}
            stacks = ["".join(traceback.format_stack(frame)[-6:]) for frame in frames.values()]
            busy = [stack for stack in stacks if "_worker" not in stack.splitlines()[-2] and "wait" not in stack[-80:]]
            print(f"a stall of more than {seconds} s:\n" + "---\n".join(busy), flush=True)
            while self._last == last:
                time.sleep(seconds / 4)

    def _beat(self) -> None:
        now = time.monotonic(), time.process_time()
        self._worst.append(min(now[0] - self._last[0] - _BEAT_SECONDS, now[1] - self._last[1]))
        self._last = time.monotonic(), time.process_time()
        self._loop.call_later(_BEAT_SECONDS, self._beat)

    def _report(self) -> None:
        stalls = sorted(self._worst, reverse=True)
        self._worst = []
        with self._path.open("a") as file:
            file.write(json.dumps({"beats": len(stalls), "worst": stalls[:5]}) + "\n")


def main(argv: list[str]) -> int:
    """[options of FakeOptions as JSON, file of the beat, option of `jaxinfer serve` ...]"""
    from serving.commands import serve

    options, path = FakeOptions(**json.loads(argv[0])), Path(argv[1])
    tame = serve.tame_loop

    def tame_and_beat(loop: asyncio.AbstractEventLoop) -> None:
        tame(loop)
        beat = Beat(loop, path)
        if "STALLS_EXPLAIN" in os.environ:
            beat.explain(float(os.environ["STALLS_EXPLAIN"]))

    serve.tame_loop = tame_and_beat
    return serve.main(argv[2:], hub_cache=Path("/nonexistent"), build=lambda _folder, _arguments: options.build)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
