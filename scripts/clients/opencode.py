"""opencode's `run`, with a home of its own: a turn in which it runs a command that the model asks for."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from cases import KEY, SCRIPTED, case, finish

PROGRAM = str(Path(os.environ["CLIENT_FOLDER"]) / "node_modules/.bin/opencode")
CONFIG = {
    "provider": {
        "local": {
            "npm": "@ai-sdk/openai-compatible",
            "options": {"baseURL": SCRIPTED + "/v1", "apiKey": KEY},
            "models": {"any": {}},
        }
    },
    "model": "local/any",
    "autoupdate": False,
    "share": "disabled",
}


@case
def a_turn_with_a_command():
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "opencode.json")
        config.write_text(json.dumps(CONFIG))
        settings = {
            "HOME": home,
            "XDG_CONFIG_HOME": home,
            "XDG_DATA_HOME": home,
            "XDG_CACHE_HOME": home,
            "OPENCODE_CONFIG": str(config),
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
        }
        done = subprocess.run(
            [PROGRAM, "run", "say hello"], cwd=home, env={**os.environ, **settings}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-600:]
        assert "echo hello" in done.stderr + done.stdout, done.stderr[-600:]
        assert "done" in done.stdout, done.stdout


finish()
