"""The servers that clients are checked against.

    python scripts/clients/servers.py demo FOLDER [OPTION of jaxinfer serve ...]
    python scripts/clients/servers.py scripted [OPTION of jaxinfer serve ...]

demo: the shipped model in a folder of its own, with a context of 65,536 tokens instead of 2,048, since agents'
instructions alone are longer than that, and a chat template that shows tools. It knows nothing of tools; what it says
of them is what the grammar leaves it.

scripted: a pretended model, which answers every request with a call of its tool, and with "done" once it has seen a
result. It calls the first of `COMMANDS` that the prompt names as a tool, else `get_weather`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from jaxinfer.cli import main as jaxinfer
from jaxinfer.messages import Progress, SequenceOutput, Submit
from jaxinfer.model_path import demo_path
from serving.commands import serve
from tests import fakes

CONTEXT = 65_536  # tokens
TEMPLATE = (
    "{{- bos_token }}"
    "{%- if tools %}<|system|>{{ tools | tojson }}\n"
    'Call one as <tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|end|>{%- endif %}'
    "{%- for m in messages %}"
    "<|{{ 'user' if m.role == 'tool' else m.role }}|>{{ m.content or '' }}"
    "{%- for call in m.tool_calls or [] %}<tool_call>\n{{ call.function | tojson }}\n</tool_call>{%- endfor %}"
    "<|end|>{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{%- endif %}"
)
RESULT = "<tool>"  # what the fakes' template writes before a tool's result
# Agents' own tools, and a call of each that does no harm.
COMMANDS: dict[str, dict[str, Any]] = {
    "exec_command": {"cmd": "echo hello"},  # Codex
    "bash": {"command": "echo hello", "description": "says hello"},  # opencode
    "run_shell_command": {"command": "echo hello", "is_background": False},  # Qwen Code
    "Bash": {"command": "echo hello", "description": "says hello"},  # Claude Code
}


def write_demo(folder: Path) -> Path:
    """The demo's folder with a longer context and another chat template."""
    folder.mkdir(parents=True, exist_ok=True)
    changed = {"chat_template.jinja", "config.json", "jaxinfer_config.json"}
    for path in demo_path().iterdir():
        target = folder / path.name
        target.unlink(missing_ok=True)
        if path.name not in changed:
            target.symlink_to(path)
            continue
        text = path.read_text()
        if path.suffix == ".jinja":
            text = TEMPLATE
        else:
            text = text.replace('"max_position_embeddings": 2048', f'"max_position_embeddings": {CONTEXT}')
        target.write_text(text)
    return folder


@dataclass
class ScriptedEngine(fakes.FakeEngine):
    """Says what the prompt calls for, at any temperature."""

    scripts: dict[str, bytes] = field(default_factory=dict)

    def _next(self, sequence: Any) -> SequenceOutput:
        submit: Submit = sequence.submit
        script = self.scripts.setdefault(
            submit.request_id, answer_to(bytes(t for t in submit.prompt_token_ids if t < 256))
        )
        position, sequence.tokens = sequence.tokens, sequence.tokens + 1
        ended = position == len(script)
        token = fakes.EOS if ended else script[position]
        reason = "stop" if ended else "length" if sequence.tokens == submit.params.max_tokens else None
        account = None
        if reason is not None:
            account = self._account(sequence)
            del self.scripts[submit.request_id]
        stop = fakes.EOS if ended else None
        return SequenceOutput(submit.request_id, sequence.index, (token,), None, reason, stop, 0, account)


def answer_to(prompt: bytes) -> bytes:
    text = prompt.decode(errors="replace")
    if RESULT in text:
        return b"done"
    if '"name": "' not in text:
        return b"No tools, so no call."
    name = next((name for name in COMMANDS if f'"name": "{name}"' in text), "get_weather")
    arguments = COMMANDS.get(name, {"city": "Paris", "days": 2})
    call = json.dumps({"name": name, "arguments": arguments})
    return f"I look.\n<tool_call>\n{call}\n</tool_call>".encode()


def build_scripted(progress: Any) -> ScriptedEngine:
    progress(Progress("load", 1, 1, "a script"))
    return ScriptedEngine(fakes.FakeOptions(max_model_len=1 << 19, num_pages=1 << 17))


def main(argv: list[str]) -> int:
    if argv[:1] == ["demo"] and len(argv) > 1:
        sizes = [
            "--max-model-len",
            str(CONTEXT),
            "--max-num-seqs",
            "8",
            "--served-model-name",
            "demo",
            "--tool-call-parser",
            "hermes",
        ]
        return jaxinfer(["serve", str(write_demo(Path(argv[1]))), *sizes, *argv[2:]])
    if argv[:1] == ["scripted"]:
        with tempfile.TemporaryDirectory() as folder:
            model = str(fakes.write_model(Path(folder)))
            return serve.main(
                [model, "--served-model-name", "any", "--tool-call-parser", "hermes", *argv[1:]],
                hub_cache=Path("/nonexistent"),
                build=lambda _folder, _arguments: build_scripted,
            )
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
