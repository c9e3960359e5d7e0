"""The pool of threads does every part of a job once, whoever comes late: more threads than cores, two callers."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
HEADERS = Path(__file__).parents[3] / "pallas_kernels" / "native_cpu"
COMPILER = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the kernels are for x86-64")
@pytest.mark.skipif(COMPILER is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("check", ["none", "thread"])
def test_every_part_runs_once(check: str, tmp_path: Path) -> None:
    """Also under the compiler's race detector, where it is installed."""
    program = tmp_path / "jobs"
    flags = [] if check == "none" else [f"-fsanitize={check}", "-g"]
    command = [COMPILER, "-std=c++20", "-O1", "-pthread", *flags, f"-I{HEADERS}", HERE / "jobs.cc", "-o", program]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and check != "none":
        pytest.skip(f"the compiler has no {check} sanitizer here")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([program, "5", "3000"], capture_output=True, text=True, timeout=60, check=False)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the race detector cannot run under this kernel")
    assert done.returncode == 0, done.stdout + done.stderr
