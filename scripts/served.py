"""A server in a process of its own, for a script that measures it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

_READY = re.compile(r"^ready .* on (\S+?)(?: \(gRPC\) and http://(\S+)/v1|\. Ctrl-C)", re.MULTILINE)


class Served:
    """Runs a command that ends in `jaxinfer serve`, and waits until the server is ready.

    What it writes goes to a file: a pipe that nobody reads would stop it once it is full.

    Attributes:
        process: the server's.
        grpc, http: its addresses, HOST:PORT; http is "" where it has none.

    Raises:
        SystemExit: with all that the server said, where it ends instead.
    """

    def __init__(self, command: list[str], cwd: Path | None = None) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as this is
        self.process = subprocess.Popen(command, cwd=cwd, stdout=self._log, stderr=subprocess.STDOUT)
        while (found := _READY.search(self.said())) is None:
            if self.process.poll() is not None:
                raise SystemExit(self.said())
            time.sleep(0.05)
        self.grpc, self.http = found[1], found[2] or ""

    def said(self) -> str:
        """All that it wrote."""
        file = self._log.fileno()  # the server's position in the file stays where it is
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 60.0) -> int:
        """Ends it, and kills it where it takes longer; its exit code."""
        self.process.send_signal(how)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
