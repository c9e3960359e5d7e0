"""`jaxinfer plan`: what a model needs on this machine, from its config alone."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from checkpoints.files import CheckpointError
from checkpoints.storage import read_storage, with_stored_defaults
from jaxinfer.config import ConfigError
from jaxinfer.model_path import resolve_model
from serving.commands.early import check_model
from serving.commands.options import add_runtime_options, runtime_config
from serving.commands.parsing import BAD_INPUT, CommandParser, fail
from serving.commands.progress import PlainLines, wide_console


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
        config = check_model(folder, runtime, weights=False)
        runtime = with_stored_defaults(folder, config, runtime)
        stored = read_storage(folder, config).matrices

        from jaxinfer.memory_plan import make_plan
        from jaxinfer.runtime.engine_builder import configure_jax
        from jaxinfer.sharding import make_mesh

        configure_jax(runtime)
        mesh = make_mesh(runtime.parallel, runtime.device)
        with _patience():
            report = make_plan(folder.resolve().name, config, runtime, mesh, stored)
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
