"""The tests that need a device: pytest in several processes, each outcome written down as it comes.

A test that takes the process down costs that test (pytest-xdist starts another process), and so does one that leaves a
device that no longer answers, see `pytest_records`. A TPU belongs to one process at a time.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from device_checks.child import Case
from device_checks.facts import FACTS_FD
from device_checks.records import Records, without_proof
from device_checks.settings import ROOT, Settings

_PROCESSES = 6
_TEST_SECONDS = 45
_NOTHING_COLLECTED = 5
CASE = "pytest"


def cases(settings: Settings) -> Iterator[Case]:
    yield Case(CASE, functools.partial(_run, settings))


def _run(settings: Settings) -> dict[str, Any]:
    platform = next((r["platform"] for r in Records(settings.out).read("probe") if "platform" in r), "gpu")
    marker = "tpu" if platform == "tpu" else "gpu"
    files = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("tests/**/test_on_device.py"))]
    command = [sys.executable, "-m", "pytest", "-m", marker, *files, "-q", "-p", "device_checks.pytest_records",
               "-p", "no:cacheprovider", "--timeout", str(_TEST_SECONDS), "--timeout-method", "thread",
               "--device-records", str(settings.out), "--device-stage", str(settings.stage)]  # fmt: skip
    if settings.rehearse:
        command += ["--device-rehearsal", "-k", "TestXla and (server or shared) and not prompt"]
    elif marker == "gpu":
        command += ["-n", str(_PROCESSES), "--dist", "worksteal", "--max-worker-restart", "200"]
    told = (int(os.environ[FACTS_FD]),) if FACTS_FD in os.environ else ()
    status = subprocess.run(command, cwd=ROOT, check=False, pass_fds=told).returncode
    if status == _NOTHING_COLLECTED:
        raise RuntimeError("pytest collected no test")
    if status not in (0, 1):
        raise RuntimeError(f"pytest ended with status {status}; see log.txt")
    if status == 1 and not without_proof([r for r in Records(settings.out).read("tests") if r["case"] != CASE]):
        raise RuntimeError("pytest says that tests failed and names none; see log.txt")
    return {"command": " ".join(command[1:]), "failures": status == 1}
