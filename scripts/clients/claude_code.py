"""Claude Code in print mode, with a home of its own: a turn in which it runs a command that the model asks for."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from cases import SCRIPTED, case, finish

PROGRAM = str(Path(os.environ["CLIENT_FOLDER"]) / "node_modules/.bin/claude")


@case
def a_turn_with_a_command():
    with tempfile.TemporaryDirectory() as home:
        settings = {
            "HOME": home,
            "ANTHROPIC_BASE_URL": SCRIPTED,
            "ANTHROPIC_API_KEY": "none",
            "ANTHROPIC_MODEL": "any",
            "ANTHROPIC_SMALL_FAST_MODEL": "any",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }
        command = [PROGRAM, "-p", "say hello", "--output-format", "json", "--allowedTools", "Bash(echo:*)"]
        done = subprocess.run(
            command, cwd=home, env={**os.environ, **settings}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout[-600:], done.stderr[-600:])
        found = json.loads(done.stdout)
        assert (found["result"], found["num_turns"]) == ("done", 2), found


finish()
