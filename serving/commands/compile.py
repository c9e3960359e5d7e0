"""`jaxinfer compile`: a model's programs as a bundle, for engines that start with it instead of compiling."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from checkpoints.files import CheckpointError
from checkpoints.storage import read_storage, with_stored_defaults
from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig
from jaxinfer.model_path import resolve_model
from jaxinfer.runtime.bundle_files import BundleRefused, Manifest, check_out
from serving.commands.early import check_model
from serving.commands.options import add_runtime_options, runtime_config
from serving.commands.parsing import BAD_INPUT, FAILURE, CommandParser, fail
from serving.commands.progress import PlainLines
from serving.commands.topology import add_topology_option, check_topology, described


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} compile",
        usage="%(prog)s [OPTION ...] --out BUNDLE [MODEL]",
        description="Compile all programs of a model into a folder, with which `serve --bundle` starts sooner "
        "(docs/operations.md). Give the options that the server will have. Loads no weights.",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="converted checkpoint, Hugging Face folder, or hub id in the local cache (default: the shipped demo)",
    )
    parser.add_argument("--out", type=Path, metavar="BUNDLE", required=True, help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace a bundle in BUNDLE")
    add_topology_option(parser, "; needs --num-pages")
    add_runtime_options(parser, bundle=False)
    return parser


def main(argv: Sequence[str], *, hub_cache: Path, program: str = "jaxinfer") -> int:
    """Returns the exit code: 0, 2 where the input is bad, 1 for anything else."""
    parser = make_parser(program)
    arguments = parser.parse_args(argv)
    began = time.monotonic()
    try:
        runtime = runtime_config(arguments)
        if arguments.topology is not None:
            check_topology(runtime)
            if runtime.num_pages is None:
                raise ConfigError(
                    "num_pages is not given; a topology needs it, since a pool must be as large in the server that "
                    "loads the bundle"
                )
        folder = resolve_model(arguments.model, hub_cache)
        config = check_model(folder, runtime, weights=False)
        runtime = with_stored_defaults(folder, config, runtime)
        check_out(arguments.out, overwrite=arguments.overwrite)
        manifest = _compiled(folder, config, runtime, arguments)
    except BundleRefused as error:
        return fail(parser.prog, f"--out: {error}", BAD_INPUT)
    except (CheckpointError, ConfigError, NotImplementedError) as error:
        return fail(parser.prog, str(error), BAD_INPUT)
    except OSError as error:
        return fail(parser.prog, str(error), FAILURE)
    size = sum(entry.bytes for entry in manifest.executables)
    print(
        f"{arguments.out}: {len(manifest.executables)} executables, {size / 1e6:.1f} MB, for "
        f"{manifest.facts['device']['kind']}, in {time.monotonic() - began:.0f} s"
    )
    return 0


def _compiled(folder: Path, config: ModelConfig, runtime: RuntimeConfig, arguments: argparse.Namespace) -> Manifest:
    """Compiles behind a spinner, or where no terminal is with a line now and then. Imports jax."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    lines = None if console.is_terminal else PlainLines(console)
    try:
        if lines is not None:
            lines.doing("compiling")
            return _compile(folder, config, runtime, arguments, lines.doing)
        with console.status("compiling") as status:
            return _compile(folder, config, runtime, arguments, status.update)
    finally:
        if lines is not None:
            lines.close()


def _compile(
    folder: Path,
    config: ModelConfig,
    runtime: RuntimeConfig,
    arguments: argparse.Namespace,
    say: Callable[[str], None],
) -> Manifest:
    if arguments.topology is not None:
        topology, runtime = described(arguments.topology, runtime)
        mesh = topology.mesh
    else:
        from jaxinfer.runtime.engine_builder import configure_jax
        from jaxinfer.sharding import make_mesh

        configure_jax(runtime)
        mesh = make_mesh(runtime.parallel, runtime.device)
    from jaxinfer.memory_plan import abstract_model
    from jaxinfer.runtime.bundle import compile_bundle

    stored = read_storage(folder, config)
    dtype = runtime.weights_dtype(config.dtype)
    model = abstract_model(folder.resolve().name, config, dtype, mesh, runtime.quantization, stored.matrices)
    return compile_bundle(
        arguments.out,
        model,
        stored.to_dict(),
        runtime,
        mesh,
        here=arguments.topology is None,
        overwrite=arguments.overwrite,
        progress=lambda done, total, name: say(f"compiling: {done} of {total}, {name}"),
    )
