"""The Hopper attention kernel through the real compilers, down to the machine code's assembler.

Needs JAX's CUDA plugin and `ptxas`, and no GPU. Compiles in a process of its own: an error inside LLVM aborts it.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from typing import Any

import jax.numpy as jnp
import pytest

from jaxinfer.runtime.topology import report
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import kv_layout
from tests.aot.compilers import needs_cuda
from tests.aot.elsewhere import run_elsewhere
from tests.aot.test_paged_attention import compiled
from tests.pallas_kernels.paged_attention.cases import Shape

BASE = Shape(
    dtype=jnp.bfloat16,
    tokens=256,
    rows=32,
    pages_per_row=32,
    kv_heads=8,
    group=4,
    head_dim=128,
    page_size=16,
)
SHAPES = {
    "plain": BASE,
    "options": dataclasses.replace(BASE, page_size=64, sinks=True, sliding_window=1000, soft_cap=30.0),
    "int8": dataclasses.replace(BASE, kv_dtype=jnp.int8, page_size=32),
    "fp8": dataclasses.replace(BASE, kv_dtype=jnp.float8_e4m3fn, page_size=64, sinks=True),
    "few-long-rows": dataclasses.replace(BASE, tokens=8, rows=4, page_size=256),
    "head-64": dataclasses.replace(BASE, head_dim=64, group=3, page_size=128),
    "head-80": dataclasses.replace(BASE, head_dim=80, group=1),
    "head-96": dataclasses.replace(BASE, head_dim=96, group=8, page_size=32),
    "head-256": dataclasses.replace(BASE, head_dim=256, group=2, sliding_window=1000, soft_cap=50.0),
    "head-256-int8": dataclasses.replace(BASE, kv_dtype=jnp.int8, head_dim=256, group=2, page_size=128),
}
# 128 registers of sums leave too few for scales and for widened values. At most so many bytes go to the level 1 cache
SPILLS = {"head-256-int8": 160}

pytestmark = [needs_cuda, pytest.mark.timeout(300)]


def compile_elsewhere(topology: str, name: str) -> str:
    """What a process that compiles one shape prints: the assembler's reports."""
    done = run_elsewhere(__name__, topology, name, environment={"MOSAIC_GPU_DUMP_PTXAS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("name", SHAPES)
def test_compiles_for_hopper_without_spills(name: str) -> None:
    text = compile_elsewhere("hopper:1", name)
    # A step of eight tokens has no row that does not decode.
    kernels = {"paged_attention_decode"} | ({"paged_attention_tiles"} if SHAPES[name].tokens > 8 else set())
    assert set(re.findall(r"Compiling entry function '(\w+?)_mosaic_gpu_kernel' for 'sm_90a'", text)) == kernels
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", text)]
    assert len(spilled) >= 2 * len(kernels)  # stores and loads; a spill is told twice
    assert max(spilled) <= SPILLS.get(name, 0), text


def test_compiles_for_four_devices() -> None:
    """The heads are shared among them; nothing is exchanged."""
    assert "Compiling entry function 'paged_attention_decode" in compile_elsewhere("hopper:4", "plain")


def main(topology: str, name: str) -> None:
    """Compiles one shape, and checks that the pages are updated in place, not copied, and nothing is exchanged."""
    shape = SHAPES[name]
    program = report(compiled(topology, shape, "mosaic_gpu"))
    kv: Any = kv_layout(
        DeviceTarget("gpu", ""), shape.kv_dtype or shape.dtype, shape.kv_heads, shape.head_dim, shape.page_size
    )
    pool = shape.num_pages * kv.bytes_per_page // int(topology.split(":")[1])
    assert program.donated >= pool, (program, pool)
    assert program.temporaries < pool, (program, pool)
    assert program.collectives == {}, program.collectives


if __name__ == "__main__":
    main(*sys.argv[1:])
