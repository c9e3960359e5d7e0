"""`jaxinfer serve` with the demo model, whose template also writes tools, documents, effort, verbosity and style."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import jax

from jaxinfer.model_path import demo_path

ROOT = Path(__file__).resolve().parents[3]
# Small, so that it compiles quickly.
FLAGS = ("--max-num-seqs=4", "--max-num-batched-tokens=16", "--max-model-len=512", "--num-pages=64")
TEMPLATE = (
    "{{- bos_token }}"
    '{%- if tools %}<|system|>{{ tools | tojson }} <tool_call>{"name": "f"}</tool_call><|end|>{%- endif %}'
    "{%- if documents %}<|system|>{{ documents | tojson }}<|end|>{%- endif %}"
    "{%- if reasoning_effort %}<|system|>{{ reasoning_effort }}<|end|>{%- endif %}"
    "{%- if verbosity %}<|system|>{{ verbosity }}<|end|>{%- endif %}"
    "{%- if style is defined %}<|system|>{{ style }}<|end|>{%- endif %}"
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)


def write_model(folder: Path) -> Path:
    """The demo's folder with other chat templates: the default one, and one named terse."""
    folder.mkdir()
    for path in demo_path().iterdir():
        if path.name != "chat_template.jinja":
            (folder / path.name).symlink_to(path)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    named = folder / "additional_chat_templates"
    named.mkdir()
    (named / "terse.jinja").write_text(TEMPLATE.replace("{{ m.content }}", "Be terse. {{ m.content }}"))
    return folder


@contextlib.contextmanager
def demo_server(folder: Path, *arguments: str) -> Iterator[httpx.Client]:
    """A client of the HTTP server."""
    model = write_model(folder / "demo")
    command = [sys.executable, "-m", "jaxinfer", "serve", str(model), "--port", "0", *FLAGS, *arguments]
    programs = str(jax.config.jax_compilation_cache_dir or "none")
    log = folder / "server.log"  # nobody reads along, and a full pipe would stop the server
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, "--compilation-cache-dir", programs], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        while (found := re.search(r"\nready.* http://(\S+)/v1", log.read_text())) is None:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://{found[1]}", timeout=60) as client:
            yield client
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
