"""The Triton attention kernel through the real compilers, from Ampere to Blackwell, down to the assembler's report.

`triton_compiler.py` says what it needs.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from jaxinfer.runtime.topology import report
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import kv_layout
from tests.aot import test_paged_attention, thunks
from tests.aot.elsewhere import run_elsewhere
from tests.aot.test_mosaic_gpu import SHAPES as HOPPER_SHAPES
from tests.aot.triton_compiler import CARDS, NEEDS, compile_elsewhere, tell, topology
from tests.pallas_kernels.paged_attention.cases import Shape

BASE = HOPPER_SHAPES["plain"]
SHAPES: dict[str, Shape] = HOPPER_SHAPES | {
    "fp8-options": dataclasses.replace(HOPPER_SHAPES["fp8"], sliding_window=1000, soft_cap=30.0),
    "any-page": dataclasses.replace(
        BASE, page_size=24, pages_per_row=128, group=65, kv_heads=1, head_dim=72, sinks=True
    ),
    "float32": dataclasses.replace(BASE, dtype=jnp.float32, sliding_window=1000),
    "float32-int8": dataclasses.replace(BASE, dtype=jnp.float32, kv_dtype=jnp.int8, sinks=True),
    "float32-head-256": dataclasses.replace(BASE, dtype=jnp.float32, head_dim=256, kv_dtype=jnp.bfloat16),
}
# Every size of head that models have, with every kind of pages.
GRID = {
    f"head-{head_dim}-pages-{name}": dataclasses.replace(BASE, head_dim=head_dim, kv_dtype=kv_dtype, page_size=64)
    for head_dim in (64, 128, 256)
    for name, kv_dtype in (("bfloat16", None), ("int8", jnp.int8), ("fp8", jnp.float8_e4m3fn))
}
SPILLS = 64  # at most so many bytes, sixteen registers, go to the level 1 cache and back
COMMON = ("plain", "fp8-options", "head-256", "few-long-rows")

pytestmark = NEEDS


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("capability", "name"),
    [
        *((80, name) for name in SHAPES),
        *((89, name) for name in COMMON),
        *((card, "plain") for card in (100, 120)),
        *(pytest.param(card, name, marks=pytest.mark.slow) for card in (86, 90, 103, 121) for name in COMMON),
        *(pytest.param(card, name, marks=pytest.mark.slow) for card in CARDS for name in GRID),
    ],
)
def test_compiles_within_the_card(capability: int, name: str, tmp_path: Path) -> None:
    kernels = compile_elsewhere(__name__, tmp_path, capability, name, 1)
    shape = (SHAPES | GRID)[name]
    assert len(kernels) == (2 if shape.tokens > 8 else 1)  # rows that decode, and tiles if there are others
    wide = shape.dtype == jnp.float32
    for kernel in kernels:
        assert kernel["target"] == f"sm_{capability}" + ("a" if capability >= 90 else "")
        assert kernel["shared"] <= CARDS[capability]["shared"], kernel
        assert max(kernel["spills"]) <= SPILLS, kernel
        assert kernel["ahead"] > 0, "a block of keys must be on its way while another is multiplied"
        # float32 is neither rounded to TF32 nor multiplied by tensor cores; bfloat16 is multiplied by nothing else.
        assert (kernel["products"] == 0) == wide, kernel
        assert (kernel["fused"] > 0) == wide, "the highest score less itself must be 0, so only products are fused"
        assert kernel["tf32"] == 0, kernel


def test_compiles_for_four_devices(tmp_path: Path) -> None:
    """The heads are shared among them; nothing is exchanged."""
    assert len(compile_elsewhere(__name__, tmp_path, 90, "plain", 4)) == 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_step_is_one_command_buffer(tmp_path: Path) -> None:
    """As `test_command_buffers.py` shows of Hopper's own kernels."""
    if importlib.metadata.version("jax-triton") < "0.4":
        pytest.skip("what jax-triton 0.3 puts into a program cannot be part of a command buffer")
    sizes = ["--max-num-seqs", "16", "--max-num-batched-tokens", "32", "--max-model-len", "512", "--kv-tokens", "4096"]
    named = ["--steps-only", "--attention-backend", "triton_gpu"]
    environment = {"XLA_FLAGS": thunks.flags(tmp_path, "step")}
    arguments = ["--topology", "hopper:1", "--model", "small-128", *named, *sizes]
    done = run_elsewhere("scripts/compile_for.py", *arguments, environment=environment, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    programs = thunks.read(tmp_path)["step"]
    assert len(programs) == done.stdout.count("\nstep[")
    for program in programs:
        assert [thunk.kind for thunk in program if thunk.depth == 0] == ["kCommandBuffer"]
        assert [thunk.kind for thunk in program].count("kCustomCall") >= 1


def main(capability: int, name: str, devices: int) -> None:
    """Compiles one shape, and checks that the pages are updated in place, not copied, and nothing is exchanged."""
    shape = (SHAPES | GRID)[name]
    test_paged_attention.topology_mesh = lambda card: topology(capability, devices)
    program = report(test_paged_attention.compiled("", shape, "triton_gpu"))
    kv: Any = kv_layout(
        DeviceTarget("gpu", ""), shape.kv_dtype or shape.dtype, shape.kv_heads, shape.head_dim, shape.page_size
    )
    pool = shape.num_pages * kv.bytes_per_page // devices
    assert program.donated >= pool, (program, pool)
    assert program.temporaries < pool, (program, pool)
    assert program.collectives == {}, program.collectives
    tell()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
