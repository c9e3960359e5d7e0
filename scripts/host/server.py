"""`jaxinfer serve` over the pretended device, in processes of their own."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from .device import HostOptions

ROOT = Path(__file__).resolve().parents[2]
_TICK = os.sysconf("SC_CLK_TCK")


def main(argv: list[str]) -> int:
    """[HostOptions as JSON, option of `jaxinfer serve` ...]"""
    from serving.commands import serve

    options = HostOptions(**json.loads(argv[0]))
    return serve.main(argv[1:], hub_cache=Path("/nonexistent"), build=lambda _folder, _arguments: options.build)


class HostServer:
    """Started at once; http and grpc are its addresses. profile: a folder for a profile of the server's process."""

    def __init__(self, folder: Path, options: HostOptions, profile: Path | None = None) -> None:
        command = [sys.executable]
        if profile is not None:
            command += ["-m", "cProfile", "-o", str(profile)]
        command += ["-m", "scripts.host.server", json.dumps(dataclasses.asdict(options)), str(folder), "--port", "0"]
        self._log = folder / "server.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        self.http, self.grpc = self._addresses()

    def _addresses(self) -> tuple[str, str]:
        while True:
            said = self._log.read_text()
            found = re.search(r"on (\S+) \(gRPC\) and http://(\S+)/v1", said)
            if found is not None:
                return found[2], found[1]
            if self.process.poll() is not None:
                raise SystemExit(said)
            time.sleep(0.1)

    def cpu_seconds(self) -> float:
        """What the server's process has used; the engine's is another."""
        return cpu_seconds(self.process.pid)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
