"""Compiles a model's steps for devices that are not here, and prints what they need: memory, work, collectives.

    python scripts/compile_for.py --topology v5e:2x4 --model llama3-8b --max-num-seqs 64
    python scripts/compile_for.py --topology hopper:4 --model path/to/checkpoint --buckets all
    python scripts/compile_for.py --topology v5e:2x4 --model gpt-oss-20b --enable-expert-parallel
    python scripts/compile_for.py --topology cpu --device-memory 28 --model Mixtral-8x7B --quantization mxfp4

TPU topologies need the libtpu package that fits the installed jax, GPU ones the CUDA plugin (jax-cuda13-plugin and
jax-cuda13-pjrt suffice) and a CUDA toolkit. Nothing is loaded and nothing runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the compilers are asked for, no device is
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax
from published_models import NAMES, write_config
from rich.console import Console
from rich.table import Table

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.storage import read_storage, with_stored_defaults
from jaxinfer.config import ConfigError, ModelConfig, Quantization, RuntimeConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.runtime.engine_builder import make_layout, make_runner
from jaxinfer.runtime.executables import Lower
from jaxinfer.runtime.kv_cache import GIB, gib, resolve_sizes
from jaxinfer.runtime.programs import SCORE, draw_name
from jaxinfer.runtime.runner import Runner
from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, ProgramReport, Topology, report, topology_mesh
from jaxinfer.sharding import expert_size, local_bytes, make_mesh, model_size, tensor_size
from pallas_kernels.dispatch import DeviceTarget, Unsupported


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compile a model's steps for devices that are not here.")
    parser.add_argument(
        "--topology", required=True, help="v5e:2x4, v6e:2x2, v5p:2x2x1, tpu7x:2x2x1, hopper:4, cpu, ..."
    )
    parser.add_argument("--model", default="llama3-8b", help=f"a checkpoint folder, or one of {', '.join(NAMES)}")
    parser.add_argument("--layers", type=int, help="only so many of the model's layers")
    parser.add_argument(
        "--buckets", choices=("ends", "largest", "all"), default="ends", help="which steps (default ends)"
    )
    parser.add_argument("--steps-only", action="store_true", help="not the programs that sample and score after a step")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default bfloat16)")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="quantizes the layers' matrices")
    parser.add_argument("--kv-tokens", type=int, default=65536, help="tokens that the KV pool holds (default 65536)")
    parser.add_argument("--kv-cache-dtype", default="auto", help="auto, float32, bfloat16, int8 or fp8")
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--max-num-seqs", type=int, help="rows of a step (default: the engine's for such a device)")
    parser.add_argument("--max-num-batched-tokens", type=int, help="tokens of a step (default: the engine's)")
    parser.add_argument(
        "--expert-parallel-size", type=int, default=1, metavar="N", help="deal experts to so many devices"
    )
    parser.add_argument("--enable-expert-parallel", action="store_true", help="deal experts to all devices")
    parser.add_argument("--attention-backend", help="a backend by name, instead of the first that can serve")
    parser.add_argument("--device-memory", type=float, metavar="GIB", help="of a device (default: what is known of it)")
    parser.add_argument("--json", action="store_true", help="one JSON object, sizes in bytes, instead of a table")
    return parser


class Prepared(NamedTuple):
    """What is compiled. Bytes of one device: `weights`, `pool` and all that stays between programs, `resident`."""

    runner: Runner
    config: ModelConfig
    weights: int
    pool: int
    resident: int


class Row(NamedTuple):
    """A program, and what compiling it took. program: None where it ran out of memory."""

    name: str
    seconds: float
    program: ProgramReport | None
    peak: int
    fits: bool


def prepare(arguments: argparse.Namespace, topology: Topology, folder: Path) -> Prepared:
    """The model in `folder` on the topology, as shapes. Raises CheckpointError, ConfigError."""
    config, mesh = read_config(folder)[0], topology.mesh
    stored = read_storage(folder, config).matrices
    model = abstract_model(arguments.model, config, arguments.dtype, mesh, arguments.quantization, stored)
    runtime = RuntimeConfig(
        dtype=arguments.dtype,
        quantization=arguments.quantization,
        tensor_parallel_size=tensor_size(mesh),
        expert_parallel_size=expert_size(mesh),
        page_size=arguments.page_size,
        num_pages=1 + -(-arguments.kv_tokens // arguments.page_size) * config.cache_groups.num_tables,
        max_model_len=min(arguments.max_model_len, config.max_position_embeddings),
        max_num_seqs=arguments.max_num_seqs,
        max_num_batched_tokens=arguments.max_num_batched_tokens,
        attention_backend=arguments.attention_backend,
        kv_cache_dtype=arguments.kv_cache_dtype,
    )
    runtime = with_stored_defaults(folder, config, runtime)
    device = mesh.devices.flat[0]
    layout = make_layout(model, DeviceTarget.of(device), runtime)
    sizes = resolve_sizes(config, runtime, layout, None, device.platform)
    runner = make_runner(model, mesh, runtime, sizes, layout)
    arrays = jax.tree.leaves(layout.struct(sizes.num_pages))
    pool = 2 * config.cache_groups.depth * sum(x.size * x.dtype.itemsize for x in arrays) // model_size(mesh)
    weights = sum(map(local_bytes, jax.tree.leaves(model.params)))
    programs = runner.programs
    state = jax.tree.leaves((programs.abstract_slots(), programs.abstract_hidden(), programs.abstract_expert_tokens()))
    return Prepared(runner, config, weights, pool, weights + pool + sum(map(local_bytes, state)))


def compile_program(name: str, lower: Lower, prepared: Prepared, memory: int | None) -> Row:
    """Compiles one program. What others need between their turns is in memory beside it."""
    begin = time.monotonic()
    try:
        program = report(lower().compile())
    except Exception as error:  # the compilers raise types of their own; running out of memory is an answer
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return Row(name, time.monotonic() - begin, None, 0, False)
    beside = program.temporaries + program.outputs - program.donated
    peak = max(program.peak, prepared.resident + beside)
    return Row(name, time.monotonic() - begin, program, peak, memory is None or peak <= memory)


def wanted(runner: Runner, buckets: str, steps_only: bool) -> dict[str, Lower]:
    """Programs to compile: all, or the smallest and the largest step with what follows it; or the steps of these."""
    jobs = runner.jobs()
    steps = {bucket.name for bucket in runner.ladder}
    ends = {runner.ladder[-1].name, draw_name(runner.row_counts[-1]), SCORE}
    if buckets == "ends":
        ends.add(runner.ladder[0].name)
    names = set(jobs) if buckets == "all" else ends
    return {name: lower for name, lower in jobs.items() if name in (names & steps if steps_only else names)}


def print_table(console: Console, heading: str, rows: Sequence[Row], pool: int, on_chip: bool) -> None:
    console.print(heading)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("step", "compiled in", "arguments", "temporaries", "peak", "fits", "donated", "GFLOP", "GB moved"):
        table.add_column(title, justify="left" if title == "step" else "right")
    if on_chip:
        table.add_column("VMEM of kernels")
    table.add_column("collectives")
    for row in rows:
        cells = [row.name, f"{row.seconds:.1f} s"]
        if row.program is None:
            table.add_row(*cells, *["-"] * 3, "[red]no[/red]", *["-"] * 3)
            continue
        kernels = [_kernels(row.program)] if on_chip else []
        table.add_row(*cells, *_cells(row, row.program, pool), *kernels, _moved(row.program))
    console.print(table)


def _cells(row: Row, program: ProgramReport, pool: int) -> list[str]:
    def estimate(value: float | None) -> str:
        return "-" if not value else f"{value / 1e9:,.1f}"

    donated = f"{program.donated / pool:.0%} of the pool"
    return [
        gib(program.arguments), gib(program.temporaries), gib(row.peak), "yes" if row.fits else "[red]no[/red]",
        donated, estimate(program.flops), estimate(program.bytes_accessed),
    ]  # fmt: skip


def _kernels(program: ProgramReport) -> str:
    return ", ".join(f"{name} {gib(size)}" for name, size in sorted(program.kernels.items())) or "none"


def _moved(program: ProgramReport) -> str:
    parts = [f"{count} {kind} ({gib(size)})" for kind, (count, size) in sorted(program.collectives.items())]
    return ", ".join(parts) or "none"


def described(arguments: argparse.Namespace) -> Topology:
    """The devices that are asked for. Raises ConfigError."""
    memory = None if arguments.device_memory is None else int(arguments.device_memory * GIB)
    if arguments.topology == "cpu":
        return Topology("cpu", make_mesh(platform="cpu"), memory)
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    expert = None if arguments.enable_expert_parallel else arguments.expert_parallel_size
    topology = topology_mesh(arguments.topology, expert)
    return topology if memory is None else Topology(topology.name, topology.mesh, memory)


def folder_of(arguments: argparse.Namespace, scratch: Path) -> Path:
    """Where the model's config.json is, perhaps written now. Raises ConfigError."""
    if arguments.model in NAMES or not Path(arguments.model).is_dir():
        return write_config(arguments.model, scratch / Path(arguments.model).name, arguments.layers)
    if arguments.layers is not None:
        raise ConfigError("layers goes with a name only, not with a checkpoint folder")
    return Path(arguments.model)


def compile_steps(arguments: argparse.Namespace, topology: Topology, folder: Path) -> bool:
    """Compiles and prints; returns whether all programs fit."""
    prepared = prepare(arguments, topology, folder)
    runner, device = prepared.runner, topology.mesh.devices.flat[0]
    attention = runner.attention_backends()
    jobs = wanted(runner, arguments.buckets, arguments.steps_only)
    rows = [compile_program(name, lower, prepared, topology.memory) for name, lower in jobs.items()]
    if arguments.json:
        print(json.dumps(as_json(arguments, topology, prepared, rows)))
    else:
        pages = f"KV pool of {runner.sizes.num_pages - 1:,} pages of {runner.sizes.page_size}"
        heading = (
            f"[bold]{arguments.model}[/bold] for {topology.mesh.size} x {device.device_kind}, "
            f"{arguments.quantization or arguments.dtype}, {pages}, attention: {attention}"
        )
        console = Console(highlight=False, width=200)
        print_table(console, heading, rows, prepared.pool, device.platform == "tpu")
    return all(row.fits for row in rows)


def as_json(
    arguments: argparse.Namespace, topology: Topology, prepared: Prepared, rows: Sequence[Row]
) -> dict[str, Any]:
    programs = [
        {
            "name": row.name, "peak": row.peak, "fits": row.fits, "seconds": round(row.seconds, 1),
            **({} if row.program is None else dataclasses.asdict(row.program)),
        }
        for row in rows
    ]  # fmt: skip
    return {
        "model": arguments.model,
        "quantization": arguments.quantization,
        "topology": topology.name,
        "expert_parallel_size": expert_size(topology.mesh),
        "layers": prepared.config.num_layers,
        "memory": topology.memory,
        "weights": prepared.weights,
        "pool": prepared.pool,
        "resident": prepared.resident,
        "programs": programs,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if everything compiled and fits, 1 if a step does not fit, 2 for bad input."""
    arguments = make_parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            return 0 if compile_steps(arguments, described(arguments), folder_of(arguments, Path(scratch))) else 1
    except (CheckpointError, ConfigError, NotImplementedError, Unsupported, ValueError) as error:
        print(f"compile_for: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
