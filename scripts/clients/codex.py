"""Codex in exec mode, with a home of its own: a turn in which it runs a command that the model asks for."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from cases import SCRIPTED, case, finish

PROGRAM = str(Path(os.environ["CLIENT_FOLDER"]) / "node_modules/.bin/codex")
CONFIG = """model = "any"
model_provider = "local"
[model_providers.local]
name = "local"
base_url = "{url}/v1"
wire_api = "responses"
"""


@case
def a_turn_with_a_command():
    with tempfile.TemporaryDirectory() as home:
        Path(home, "config.toml").write_text(CONFIG.format(url=SCRIPTED))
        command = [PROGRAM, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "say hello"]
        done = subprocess.run(
            command, cwd=home, env={**os.environ, "CODEX_HOME": home, "HOME": home}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-600:]
        assert "echo hello" in done.stderr, done.stderr[-600:]
        assert "done" in done.stdout, done.stdout


finish()
