"""scripts/soak.py, short: the real server with the demo, many streams, waiting ones, and some load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_every_bar_of_a_short_soak_holds() -> None:
    command = [sys.executable, "scripts/soak.py", "--streams", "200", "--idle", "200", "--seconds", "40"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=580, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("| holds") == 10
    assert "MISSED" not in done.stdout
