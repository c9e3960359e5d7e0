"""`jaxinfer COMMAND ...`. A composition root: commands live where they belong and are imported when they are called."""

from __future__ import annotations

import difflib
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

    return main(argv, hub_cache=hub_cache_from(os.environ), called=_called())


def _generate(argv: Sequence[str]) -> int:
    _quiet_grpc()
    from serving.commands.generate import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _batch(argv: Sequence[str]) -> int:
    from serving.commands.batch import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _convert(argv: Sequence[str]) -> int:
    from serving.commands.convert import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _plan(argv: Sequence[str]) -> int:
    from serving.commands.plan import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _compile(argv: Sequence[str]) -> int:
    from serving.commands.compile import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _eval(argv: Sequence[str]) -> int:
    _quiet_grpc()
    from serving.commands.evaluate import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _quiet_grpc() -> None:
    """A client's failures are told in its own words; gRPC's C++ core would log them in others, beforehand."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def _keys(argv: Sequence[str]) -> int:
    from serving.commands.keys import main

    return main(argv)


def _bench(argv: Sequence[str]) -> int:
    _quiet_grpc()
    from serving.commands.bench import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


def _profile(argv: Sequence[str]) -> int:
    from serving.commands.profile import main

    return main(argv, hub_cache=hub_cache_from(os.environ))


COMMANDS = {
    "serve": Command("serve a model over gRPC and HTTP", _serve),
    "generate": Command("generate text, from a server or from a model run here", _generate),
    "batch": Command("answer a file of requests in OpenAI's batch format", _batch),
    "convert": Command("convert a Hugging Face folder into a checkpoint that loads faster", _convert),
    "plan": Command("say what a model needs on this machine, without loading it", _plan),
    "compile": Command("compile a model's programs ahead of time, for servers that start with them", _compile),
    "keys": Command("make API keys for a server, and list them", _keys),
    "eval": Command("measure how good a model's answers are, or compare two", _eval),
    "bench": Command("measure how fast a server answers, or a model runs here", _bench),
    "profile": Command("record a few steps of a model and say where their time went", _profile),
}


def _called() -> str:
    """How this program was called from a shell: what a line to paste begins with. Help and errors say `jaxinfer`."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m jaxinfer"
    found = shutil.which("jaxinfer")
    if called.name != "jaxinfer" or (found is not None and os.path.samefile(found, called)):
        return "jaxinfer"
    here = Path.cwd()
    return str(called.relative_to(here) if called.is_relative_to(here) else called)


def usage() -> str:
    lines = ["usage: jaxinfer COMMAND [OPTION ...]", "", "commands:"]
    lines += [f"  {name:<10} {command.summary}" for name, command in COMMANDS.items()]
    lines += [
        "",
        "jaxinfer COMMAND --help lists the options. Where a command takes a MODEL, the shipped demo is the default.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 for bad input, 1 for other failures, 130 after Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    if name in ("-V", "--version"):
        print(f"jaxinfer {__version__}")
        return 0
    command = COMMANDS.get(name)
    if command is None:
        close = difflib.get_close_matches(name.lstrip("-"), COMMANDS, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        print(f"jaxinfer: error: COMMAND is {name!r}; it must be one of {', '.join(COMMANDS)}{hint}", file=sys.stderr)
        return 2
    try:
        return command.run(arguments[1:])
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output left: there is nobody to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, a folder that may not be written: no fault of the program
        print(f"jaxinfer {name}: error: {error}", file=sys.stderr)
        return 1
