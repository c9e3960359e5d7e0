"""`jaxinfer bench`: how fast a server answers at which rate, and how fast a model runs here."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from checkpoints.files import CheckpointError
from jaxinfer.config import ConfigError
from jaxinfer.errors import BAD_INPUT as BAD_REQUEST
from jaxinfer.text import TokenizerError
from serving.bench.datasets import DatasetError
from serving.bench.records import ServerTrouble
from serving.commands import bench_offline, bench_serve
from serving.commands.parsing import BAD_INPUT, FAILURE, INTERRUPTED, CommandError, CommandParser, fail


class _Bench(NamedTuple):
    summary: str
    usage: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace, Path], int]


_COMMANDS = {
    "serve": _Bench(
        "send requests to a server at given rates and measure its answers",
        "[OPTION ...] --url URL",
        bench_serve.add_options,
        bench_serve.run,
    ),
    "throughput": _Bench(
        "tokens per second of a model run here, all requests at once",
        "[OPTION ...]",
        bench_offline.add_throughput_options,
        bench_offline.run_throughput,
    ),
    "latency": _Bench(
        "seconds that one batch takes on a model run here",
        "[OPTION ...]",
        bench_offline.add_latency_options,
        bench_offline.run_latency,
    ),
    "startup": _Bench(
        "seconds from the command to the ready line, with and without a cache",
        "[OPTION ...]",
        bench_offline.add_startup_options,
        bench_offline.run_startup,
    ),
}


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} bench",
        usage="%(prog)s COMMAND [OPTION ...]",
        description="Measure a server or a model (docs/benchmarking.md). Options are named as in `vllm bench`.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", prog=parser.prog
    )
    for name, bench in _COMMANDS.items():
        said = f"{bench.summary}.".capitalize()
        command = commands.add_parser(name, help=bench.summary, description=said, usage=f"%(prog)s {bench.usage}")
        bench.add_options(command)
    return parser


def main(argv: Sequence[str], *, hub_cache: Path, program: str = "jaxinfer") -> int:
    """Returns the exit code: 0, 2 for bad input, 1 where nothing could be measured, 130 after Ctrl-C."""
    parser = make_parser(program)
    if not argv:
        parser.print_help()
        return BAD_INPUT
    arguments = parser.parse_args(argv)
    called = f"{parser.prog} {arguments.command}"
    try:
        return _COMMANDS[arguments.command].run(arguments, hub_cache)
    except CommandError as error:
        return fail(called, str(error), error.code)
    except (DatasetError, CheckpointError, ConfigError, TokenizerError, *BAD_REQUEST) as error:
        return fail(called, str(error), BAD_INPUT)
    except ServerTrouble as error:
        return fail(called, str(error), FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED
