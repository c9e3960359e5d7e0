"""A server over the pretended device, in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path

from served import Served

from .device import HostOptions

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")


class HostServer(Served):
    """Started at once. profile: a folder for a profile of the server's process."""

    def __init__(self, folder: Path, options: HostOptions, profile: Path | None = None) -> None:
        command = [sys.executable]
        if profile is not None:
            command += ["-m", "cProfile", "-o", str(profile)]
        command += ["-m", "scripts.host.server", json.dumps(dataclasses.asdict(options)), str(folder), "--port", "0"]
        super().__init__(command, ROOT)

    def cpu_seconds(self) -> float:
        """What the server's process has used; the engine's is another."""
        return cpu_seconds(self.process.pid)


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK
