"""The server under test, started, and the stalls that it reports."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from served import Served

from tests.fakes import FakeOptions

ROOT = Path(__file__).resolve().parents[2]


class StallServer(Served):
    """Started at once."""

    def __init__(self, folder: Path, options: FakeOptions, *arguments: str) -> None:
        self._beats = folder / "beats.jsonl"
        self._beats.touch()
        command = [sys.executable, "-m", "scripts.stalls.server", json.dumps(dataclasses.asdict(options))]
        command += [str(self._beats.resolve()), str(folder.resolve()), "--port", "0", *arguments]
        super().__init__(command, ROOT)

    def stalls(self) -> dict[str, Any]:
        """Since the last call. Seconds."""
        before = self._beats.stat().st_size
        os.kill(self.process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + 60
        while self._beats.stat().st_size == before:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server has ended, or says nothing: {self.said()[-2000:]}")
            time.sleep(0.01)
        found: dict[str, Any] = json.loads(self._beats.read_text().splitlines()[-1])
        return found
