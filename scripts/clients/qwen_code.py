"""Qwen Code with a question in its command line, and a home of its own: a turn in which it runs a command that the
model asks for."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from cases import KEY, SCRIPTED, case, finish

PROGRAM = str(Path(os.environ["CLIENT_FOLDER"]) / "node_modules/.bin/qwen")


@case
def a_turn_with_a_command():
    with tempfile.TemporaryDirectory() as home:
        settings = {
            "HOME": home,
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": SCRIPTED + "/v1",
            "OPENAI_MODEL": "any",
        }
        command = [PROGRAM, "--auth-type", "openai", "-y", "-p", "say hello", "--output-format", "json"]
        done = subprocess.run(
            command, cwd=home, env={**os.environ, **settings}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout[-600:], done.stderr[-600:])
        assert "echo hello" in done.stdout, done.stdout[-600:]
        assert '"done"' in done.stdout, done.stdout[-600:]


finish()
