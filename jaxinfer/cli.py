"""`jaxinfer COMMAND ...`. A composition root: commands live where they belong and are imported when they are called."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxinfer import __version__
from jaxinfer.model_path import hub_cache_from


class Command(NamedTuple):
    summary: str
    run: Callable[[Sequence[str]], int]


def _serve(argv: Sequence[str]) -> int:
    from serving.commands.serve import main

    return main(argv, hub_cache=hub_cache_from(os.environ), program=_program())


def _generate(argv: Sequence[str]) -> int:
    from serving.commands.generate import main

    return main(argv, hub_cache=hub_cache_from(os.environ), program=_program())


def _batch(argv: Sequence[str]) -> int:
    from serving.commands.batch import main

    return main(argv, hub_cache=hub_cache_from(os.environ), program=_program())


def _convert(argv: Sequence[str]) -> int:
    from checkpoints.convert import main

    return main(argv)


def _plan(argv: Sequence[str]) -> int:
    from serving.commands.plan import main

    return main(argv, hub_cache=hub_cache_from(os.environ), program=_program())


def _eval(argv: Sequence[str]) -> int:
    from serving.commands.evaluate import main

    return main(argv, hub_cache=hub_cache_from(os.environ), program=_program())


def _keys(argv: Sequence[str]) -> int:
    from serving.commands.keys import main

    return main(argv, program=_program())


COMMANDS = {
    "serve": Command("serve a model over gRPC and HTTP", _serve),
    "generate": Command("generate text, from a server or from a model run here", _generate),
    "batch": Command("answer a file of requests in OpenAI's batch format", _batch),
    "convert": Command("convert a Hugging Face folder into a checkpoint that loads faster", _convert),
    "plan": Command("say what a model needs on this machine, without loading it", _plan),
    "keys": Command("make API keys for a server, and list them", _keys),
    "eval": Command("measure how good a model's answers are, or compare two", _eval),
}


def _program() -> str:
    """How this program is called from a shell: what help and hints tell the user to type."""
    called = sys.argv[0]
    if Path(called).name == "__main__.py":
        return "python -m jaxinfer"
    return "jaxinfer" if shutil.which("jaxinfer") == os.path.abspath(called) else called


def usage() -> str:
    lines = [f"usage: {_program()} COMMAND [OPTION ...]", "", "commands:"]
    lines += [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        f"{_program()} COMMAND --help lists the options. MODEL is optional everywhere: the shipped demo then.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for bad input, 1 for other failures."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        print(f"jaxinfer {__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        print(f"jaxinfer: error: command is {name!r}; it must be one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return command.run(arguments[1:])
    except KeyboardInterrupt:
        return 130
