"""A decode step with flags of XLA's, one at a time, beside the step without, in turns in one process.

Two layers of the Llama-3-8B shape: the same kernels as 32, and little to compile for each flag. What is printed is how
many times as fast the step is with the flag; above 1 the flag is worth a look, for the whole model then.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from device_checks.child import Case
from device_checks.engine import EngineBench
from device_checks.engine_sizes import engine_sizes
from device_checks.settings import Settings

_ROUNDS = 5


class Flag(NamedTuple):
    """options: as XLA names them. why: what is to be found out."""

    name: str
    options: dict[str, str | bool | int]
    why: str


FLAGS = (
    Flag("no-command-buffers", {"xla_gpu_enable_command_buffer": ""},
         "what one launch of a whole step is worth beside a launch for each kernel"),
    Flag("no-triton-products", {"xla_gpu_enable_triton_gemm": False},
         "whether cuBLAS is faster than XLA's generated kernels at products of a few rows"),
    Flag("cublaslt", {"xla_gpu_enable_cublaslt": True},
         "cuBLASLt has other forms of thin products, and takes what follows a product along"),
    Flag("concurrent-graph", {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"},
         "whether kernels of one graph that do not depend on each other fill each other's gaps"),
    Flag("exhaustive-tiles", {"xla_gpu_exhaustive_tiling_search": True},
         "whether the autotuner misses tiles of thin products in its usual, shorter list"),
)  # fmt: skip


def cases(settings: Settings) -> Iterator[Case]:
    bench = EngineBench(engine_sizes(settings, "flags"))
    yield Case("start-up", bench.start_up)
    for flag in FLAGS:
        yield Case(flag.name, functools.partial(_compare, bench, flag))


def _compare(bench: EngineBench, flag: Flag) -> dict[str, Any]:
    """Raises NotImplementedError where this XLA does not know the flag."""
    rows = bench.sizes.rows[0]
    bucket, calls = bench.step_calls([(1, bench.sizes.depth)] * rows)
    _, runner = bench.start()
    begin = time.perf_counter()
    try:
        changed = runner.lower_step(bucket).compile(compiler_options=flag.options)
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error) or "is not a valid" in str(error):
            raise NotImplementedError(" ".join(str(error).split())) from error
        raise
    compile_seconds = time.perf_counter() - begin
    plain = runner._executables[bucket.name]
    seconds: dict[bool, list[float]] = {False: [], True: []}
    try:
        for turn in range(2 * (_ROUNDS + 1)):
            with_flag = turn % 2 == 1
            runner._executables[bucket.name] = changed if with_flag else plain
            seconds[with_flag].append(_timed(calls) / bench.sizes.steps)
    finally:
        runner._executables[bucket.name] = plain
    base, new = (statistics.median(times[1:]) for times in (seconds[False], seconds[True]))  # the first ones load
    return {
        "options": flag.options, "why": flag.why, "base_seconds": base, "flag_seconds": new,
        "times_as_fast": base / new, "compile_seconds": compile_seconds,
    }  # fmt: skip


def _timed(calls: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(calls())
    return time.perf_counter() - begin
