"""Starts a section's process, ends what hangs, and starts another one behind a case that killed the first."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

from device_checks.child import DEVICE_LOST
from device_checks.facts import FACTS_FD, tell
from device_checks.records import CRASHED, SKIPPED, TIMEOUT, Records
from device_checks.sections import Section
from device_checks.settings import ROOT, Settings

LOG = "log.txt"
_POLL_SECONDS = 0.1
_START = "start"  # stands for what a process does before its first case
_LEAST_SECONDS = 3.0


class Supervisor:
    """Runs sections until `deadline` (of `time.monotonic()`). Everything they print goes to `log.txt`, but for the
    facts: a section's process prints those on this one's stdout, at the moment when it knows them."""

    def __init__(self, settings: Settings, deadline: float) -> None:
        self.settings = settings
        self.records = Records(settings.out, settings.stage, tell)
        self.deadline = deadline
        self._log_path = settings.out / LOG
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, section: Section, reserved: float = 0.0, left_over: float = 0.0) -> None:
        """Runs all cases of a section, as far as time and crashes allow; `reserved` seconds are for later ones,
        `left_over` what earlier ones did not need."""
        end = min(time.monotonic() + section.seconds + left_over, self.deadline - reserved)
        while True:
            if end - time.monotonic() < _LEAST_SECONDS:
                self.records.add(section.name, "rest", SKIPPED, error=self._why(section, reserved))
                return
            with self._log_path.open("a") as log:
                status = self._one_process(section, end, log, reserved)
            if status == 0 or not self._goes_on(section, status):
                return

    def stop(self) -> None:
        """Ends the running process, if there is one."""
        if self._process is not None:
            _kill(self._process)

    def _why(self, section: Section, reserved: float) -> str:
        if self.deadline - reserved - time.monotonic() < _LEAST_SECONDS:
            later = f", but for {reserved:.0f} s that later sections need" if reserved else ""
            return f"the time of the whole run was over{later}"
        return f"the {section.seconds:.0f} s of this section were over"

    def _one_process(self, section: Section, end: float, log: TextIO, reserved: float) -> int | None:
        """Its exit status; None if it was ended here."""
        print(f"\n==== {section.name}", file=log, flush=True)
        command = [sys.executable, str(ROOT / "scripts" / "device_check.py"), "--section", section.to_json()]
        told = os.dup(1)
        self._process = process = subprocess.Popen(
            [*command, *self.settings.arguments()],
            cwd=ROOT,
            env=self.settings.environment() | {FACTS_FD: str(told)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(told,),
            start_new_session=True,  # so that its own processes end with it
        )
        os.close(told)
        case, since = _START, time.monotonic()
        size = -1
        try:
            while (status := process.poll()) is None:
                now = time.monotonic()
                if (grown := _size(self.records.path)) != size:
                    size = grown
                    current = self.records.open_case(section.name) or _START
                    case, since = (current, now) if current != case else (case, since)
                if now > end:
                    self._ended(section, case, f"{self._why(section, reserved)}; it had {now - since:.0f} s")
                    return None
                if now - since > section.case_seconds:
                    self._ended(section, case, f"stopped after {section.case_seconds:.0f} s")
                    return None
                time.sleep(_POLL_SECONDS)
            return status
        finally:
            _kill(process)
            self._process = None

    def _ended(self, section: Section, case: str, reason: str) -> None:
        # The case may have ended in this very moment; then there is nothing to say about it.
        if case == _START or self.records.open_case(section.name) == case:
            self.records.add(section.name, case, TIMEOUT, error=reason)

    def _goes_on(self, section: Section, status: int | None) -> bool:
        """Whether another process should take the remaining cases."""
        records = self.records.read(section.name)
        if status is None:  # ended here: what took too long is written down
            return records[-1]["case"] != _START
        case = self.records.open_case(section.name)
        if case is not None:
            self.records.add(section.name, case, CRASHED, error=f"{_describe(status)}; {self._last_words()}")
            return True
        if status != DEVICE_LOST:
            self.records.add(section.name, _START, CRASHED, error=f"{_describe(status)}; {self._last_words()}")
        return status == DEVICE_LOST

    def _last_words(self) -> str:
        """The last line of the log that looks like an error, else the last line."""
        with self._log_path.open("rb") as log:
            log.seek(max(0, self._log_path.stat().st_size - 20_000))
            lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        told = [line for line in lines if "rror" in line or "Check failed" in line or line.startswith(("F0", "Fatal"))]
        return (told or lines or [""])[-1][:300]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and its own, and waits: the next one needs the device."""
    with contextlib.suppress(ProcessLookupError):  # all of them may have ended by themselves
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        print(f"process {process.pid} cannot be ended", file=sys.stderr)
