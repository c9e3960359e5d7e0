"""Compiles a model's steps for devices that are not here, and prints what they need: memory, work, collectives.

    python scripts/compile_for.py --topology v5e:2x4 --model llama3-8b --max-num-seqs 64
    python scripts/compile_for.py --topology hopper:4 --model path/to/checkpoint --buckets all

TPU topologies need the libtpu package that fits the installed jax, GPU ones the CUDA plugin (jax-cuda13-plugin and
jax-cuda13-pjrt suffice) and a CUDA toolkit. Nothing is loaded and nothing runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the compilers are asked for, no device is

from model_shapes import SHAPES
from rich.console import Console
from rich.table import Table

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.storage import read_storage, with_stored_defaults
from jaxinfer.config import ConfigError, ModelConfig, Quantization, RuntimeConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.models.registry import model_config
from jaxinfer.runtime.engine_builder import make_layout, make_runner
from jaxinfer.runtime.executables import Lower
from jaxinfer.runtime.kv_cache import gib, resolve_sizes
from jaxinfer.runtime.programs import SCORE, draw_name
from jaxinfer.runtime.runner import Runner
from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, ProgramReport, Topology, report, topology_mesh
from jaxinfer.sharding import expert_size, model_size, tensor_size
from pallas_kernels.dispatch import DeviceTarget, Unsupported


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compile a model's steps for devices that are not here.")
    parser.add_argument("--topology", required=True, help="v5e:2x4, v6e:2x2, v5p:2x2x1, tpu7x:2x2x1, hopper:4, ...")
    parser.add_argument("--model", default="llama3-8b", help=f"{', '.join(SHAPES)}, or a checkpoint folder")
    parser.add_argument("--layers", type=int, help="only so many of the model's layers")
    parser.add_argument("--buckets", choices=("ends", "all"), default="ends", help="smallest and largest step, or all")
    parser.add_argument("--steps-only", action="store_true", help="not the programs that sample and score after a step")
    parser.add_argument("--dtype", default="bfloat16", help="of the weights (default bfloat16)")
    parser.add_argument("--quantization", choices=get_args(Quantization), help="quantizes the layers' matrices")
    parser.add_argument("--kv-tokens", type=int, default=65536, help="tokens that the KV pool holds (default 65536)")
    parser.add_argument("--kv-cache-dtype", default="auto", help="auto, float32, bfloat16, int8 or fp8")
    parser.add_argument("--page-size", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--max-num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument(
        "--expert-parallel-size", type=int, default=1, metavar="N", help="deal experts to so many devices"
    )
    parser.add_argument("--enable-expert-parallel", action="store_true", help="deal experts to all devices")
    parser.add_argument("--attention-backend", help="a backend by name, instead of the first that can serve")
    return parser


def describe(name: str, layers: int | None) -> ModelConfig:
    """The config of a shape name or of a checkpoint folder. Raises ConfigError, CheckpointError."""
    if name in SHAPES:
        raw = SHAPES[name] | ({"num_hidden_layers": layers} if layers is not None else {})
        return model_config(raw)
    if not Path(name).is_dir():
        raise ConfigError(f"model is {name!r}; it must be a checkpoint folder or one of {', '.join(SHAPES)}")
    if layers is not None:
        raise ConfigError("layers goes with a shape name only")
    return read_config(Path(name))[0]


def compile_steps(arguments: argparse.Namespace, topology: Topology, console: Console) -> bool:
    """Compiles and prints; returns whether all steps fit."""
    config = describe(arguments.model, arguments.layers)
    mesh = topology.mesh
    device = mesh.devices.flat[0]
    folder = None if arguments.model in SHAPES else Path(arguments.model)
    stored = None if folder is None else read_storage(folder, config).matrices
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
    if folder is not None:
        runtime = with_stored_defaults(folder, config, runtime)
    layout = make_layout(model, DeviceTarget.of(device), runtime)
    sizes = resolve_sizes(config, runtime, layout, None, device.platform)
    runner = make_runner(model, mesh, runtime, sizes, layout)
    console.print(
        f"[bold]{arguments.model}[/bold] for {mesh.size} x {device.device_kind}, "
        f"{arguments.quantization or arguments.dtype}, "
        f"KV pool of {sizes.num_pages - 1:,} pages of {sizes.page_size}, "
        f"attention: {runner.attention_backends()}"
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("step", "compiled in", "arguments", "temporaries", "peak", "fits", "donated", "GFLOP", "GB moved"):
        table.add_column(heading, justify="left" if heading == "step" else "right")
    on_chip = device.platform == "tpu"
    if on_chip:
        table.add_column("VMEM of kernels")
    table.add_column("collectives")
    array = sum(x.size * x.dtype.itemsize for x in _leaves(layout.struct(sizes.num_pages)))
    pool = array * 2 * config.cache_groups.depth
    fits = True
    for name, lower in _wanted(runner, arguments.buckets, arguments.steps_only).items():
        begin = time.monotonic()
        try:
            compiled = lower().compile()
        except Exception as error:  # the compilers raise types of their own; running out of memory is an answer
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            fits = False
            table.add_row(name, f"{time.monotonic() - begin:.1f} s", *["-"] * 3, "[red]no[/red]", *["-"] * 3)
            continue
        program = report(compiled)
        fit = topology.memory is None or program.peak <= topology.memory
        fits &= fit
        seconds = f"{time.monotonic() - begin:.1f} s"
        kernels = [_kernels(program)] if on_chip else []
        table.add_row(name, seconds, *_cells(program, fit, pool // model_size(mesh)), *kernels, _moved(program))
    console.print(table)
    return fits


def _wanted(runner: Runner, buckets: str, steps_only: bool) -> dict[str, Lower]:
    """Programs to compile: all, or the smallest and the largest step with what follows it; or the steps of these."""
    jobs = runner.jobs()
    steps = {bucket.name for bucket in runner.ladder}
    ends = {runner.ladder[0].name, runner.ladder[-1].name, draw_name(runner.row_counts[-1]), SCORE}
    wanted = set(jobs) if buckets == "all" else ends
    return {name: lower for name, lower in jobs.items() if name in (wanted & steps if steps_only else wanted)}


def _leaves(tree: Any) -> list[Any]:
    import jax

    return jax.tree.leaves(tree)


def _cells(program: ProgramReport, fit: bool, pool: int) -> list[str]:
    def estimate(value: float | None) -> str:
        return "-" if not value else f"{value / 1e9:,.1f}"

    donated = f"{program.donated / pool:.0%} of the pool"
    return [
        gib(program.arguments), gib(program.temporaries), gib(program.peak), "yes" if fit else "[red]no[/red]", donated,
        estimate(program.flops), estimate(program.bytes_accessed),
    ]  # fmt: skip


def _kernels(program: ProgramReport) -> str:
    return ", ".join(f"{name} {gib(size)}" for name, size in sorted(program.kernels.items())) or "none"


def _moved(program: ProgramReport) -> str:
    parts = [f"{count} {kind} ({gib(size)})" for kind, (count, size) in sorted(program.collectives.items())]
    return ", ".join(parts) or "none"


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if everything compiled and fits, 1 if a step does not fit, 2 for bad input."""
    arguments = make_parser().parse_args(argv)
    console = Console(highlight=False, width=200)
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        expert = None if arguments.enable_expert_parallel else arguments.expert_parallel_size
        topology = topology_mesh(arguments.topology, expert)
        return 0 if compile_steps(arguments, topology, console) else 1
    except (CheckpointError, ConfigError, NotImplementedError, Unsupported, ValueError) as error:
        print(f"compile_for: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
