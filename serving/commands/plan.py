"""`jaxinfer plan`: what a model needs on this machine, from its config alone."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.files import CheckpointError
from checkpoints.storage import read_storage, with_stored_defaults
from jaxinfer.config import ConfigError, RuntimeConfig
from jaxinfer.model_path import resolve_model
from serving.commands.early import check_model
from serving.commands.options import add_runtime_options, runtime_config
from serving.commands.parsing import BAD_INPUT, CommandParser, fail
from serving.commands.progress import PlainLines, wide_console
from serving.commands.topology import add_topology_option, check_topology, described

if TYPE_CHECKING:
    from jax.sharding import Mesh


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} plan",
        usage="%(prog)s [OPTION ...] [MODEL]",
        description="Print the memory that a model needs and what fits beside it. Loads no weights; compiles one step.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    add_topology_option(parser)
    parser.add_argument(
        "--device-memory",
        type=float,
        metavar="GIB",
        help="plan for devices of which so many GiB are free (default: what they say, or what is known of a topology)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object, sizes in bytes, instead of a table")
    add_runtime_options(parser, bundle=False)
    return parser


def main(argv: Sequence[str], *, hub_cache: Path, program: str = "jaxinfer") -> int:
    """Prints the plan; exit code 2 when something cannot fit or cannot be read."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    try:
        folder = resolve_model(arguments.model, hub_cache)
        runtime = runtime_config(arguments)
        memory = _memory(arguments.device_memory)
        if arguments.topology is not None:
            check_topology(runtime)
        config = check_model(folder, runtime, weights=False)
        runtime = with_stored_defaults(folder, config, runtime)
        stored = read_storage(folder, config).matrices

        mesh, runtime, known = _devices(arguments.topology, runtime, given=memory is not None)
        from jaxinfer.memory_plan import make_plan

        with _patience():
            name = folder.resolve().name
            report = make_plan(name, config, runtime, mesh, stored, memory=known if memory is None else memory)
    except (CheckpointError, ConfigError, NotImplementedError) as error:
        return fail(parser.prog, str(error), BAD_INPUT)
    if arguments.json:
        print(json.dumps(report.to_dict()))
        return 0
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for label, value in report.rows():
        table.add_row(f"[dim]{label}[/dim]", escape(value))
    console = wide_console()
    console.print(table, soft_wrap=True)
    for note in report.sizes.notes:
        console.print(f"[dim]·[/dim] {escape(note)}", soft_wrap=True)
    return 0


def _memory(asked: float | None) -> int | None:
    """The option's bytes. Raises ConfigError for what is no size."""
    if asked is None:
        return None
    if not 0 < asked < 1 << 20:
        raise ConfigError(f"device_memory is {asked}; it must be a number of GiB, above 0")
    return int(asked * (1 << 30))


def _devices(topology: str | None, runtime: RuntimeConfig, given: bool) -> tuple[Mesh, RuntimeConfig, int | None]:
    """The devices to plan for, `runtime` for all of them, and a device's memory where it cannot be asked.

    given: whether the user says how much it is. Raises ConfigError where nobody does.
    """
    if topology is not None:
        found, runtime = described(topology, runtime)
        if found.memory is None and not given:
            raise ConfigError(f"device_memory is not given; what a device of topology {topology!r} has is not known")
        return found.mesh, runtime, found.memory
    from jaxinfer.runtime.engine_builder import configure_jax
    from jaxinfer.sharding import make_mesh

    configure_jax(runtime)
    return make_mesh(runtime.parallel, runtime.device), runtime, None


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    """Compiling a step takes a while: something moves on a terminal, and a log gets a line now and then."""
    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("compiling one step"):
            yield
        return
    lines = PlainLines(console)
    lines.doing("compiling one step")
    try:
        yield
    finally:
        lines.close()
