"""The Hopper kernel of the grouped product through the real compilers, down to the machine code's assembler.

Needs JAX's CUDA plugin and `ptxas`, and no GPU. Compiles in a process of its own: an error inside LLVM aborts it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.runtime.topology import report, topology_mesh
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.mosaic_gpu_plan import plan_of
from pallas_kernels.mosaic_gpu_support import REGISTERS
from pallas_kernels.qtensor import QTensor
from tests.aot.compilers import needs_cuda
from tests.aot.elsewhere import run_elsewhere

pytestmark = [needs_cuda, pytest.mark.timeout(300)]


@dataclasses.dataclass(frozen=True)
class Case:
    """Products of so many rows each with experts; `kind` None: in bfloat16."""

    rows: tuple[int, ...]
    experts: int
    outputs: tuple[int, ...]
    inputs: int
    kind: str | None = None
    group: int = 0
    zeros: bool = False


CASES = {
    "qwen3-30b": Case((8, 512), 128, (2, 768), 2048),
    "qwen3-30b-int4": Case((8, 512), 128, (2, 768), 2048, "int4", 128),
    "gpt-oss-down": Case((64,), 32, (2880,), 2880),
    "gpt-oss-int4-zeros": Case((64,), 32, (2, 2880), 2880, "int4", 32, zeros=True),
    "gpt-oss-mxfp4": Case((8, 512), 32, (2, 2880), 2880, "mxfp4", 32),
    "mixtral": Case((4096,), 8, (2, 14336), 4096),
    "odd-sizes": Case((5, 100), 4, (72,), 96),
}


# One of each kind of weight, and what no model has; the other sizes compile alike.
SHORT = ("qwen3-30b-int4", "gpt-oss-down", "gpt-oss-mxfp4", "odd-sizes")


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_compiles_for_hopper_without_spills(name: str) -> None:
    """Nothing is spilled from registers, and no weight is copied or written out wide."""
    done = run_elsewhere(__name__, name, environment={"MOSAIC_GPU_DUMP_PTXAS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    text, case = done.stdout, CASES[name]
    entries = re.findall(r"Compiling entry function 'grouped_matmul_\w+_mosaic_gpu_kernel' for 'sm_90a'", text)
    assert len(entries) == len(case.rows), text
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", text)]
    assert len(spilled) >= 2 * len(entries)
    assert max(spilled) == 0, text
    assert "serialized" not in text, text  # what ptxas says where it makes products wait for each other
    used = [int(count) for count in re.findall(r"Used (\d+) registers", text)]
    for rows, registers in zip(case.rows, used, strict=True):
        check_registers(case, rows, registers)


def check_registers(case: Case, rows: int, registers: int) -> None:
    """Warpgroups that ask for more registers than a block of threads started with would wait for ever."""
    outputs, whole = math.prod(case.outputs), -(-rows // 8) * 8
    plan = plan_of(whole, case.experts, outputs, case.inputs, kind=case.kind, group=case.group)
    if plan.warpgroups in REGISTERS:
        compute, copy = REGISTERS[plan.warpgroups]
        assert plan.warpgroups * compute + copy <= (plan.warpgroups + 1) * registers


def main(name: str) -> None:
    """Compiles the programs of a case, and checks what they keep in memory and how many kernels they have."""
    case = CASES[name]
    mesh = topology_mesh("hopper:1").mesh
    target = DeviceTarget.of(mesh.devices.flat[0])

    def struct(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec()))

    outputs = (case.experts, *case.outputs)
    weight = struct((*outputs, case.inputs), jnp.bfloat16)
    if case.kind is not None:
        scales = jnp.uint8 if case.kind == "mxfp4" else jnp.float32
        factors = struct((*outputs, case.inputs // case.group), scales)
        zeros = struct(factors.shape, jnp.uint8) if case.zeros else None
        weight = QTensor(struct((*outputs, case.inputs // 2), jnp.uint8), factors, zeros, kind=case.kind)  # type: ignore
    for rows in case.rows:
        x, sizes = struct((rows, case.inputs), jnp.bfloat16), struct((case.experts,), jnp.int32)
        with jax.set_mesh(mesh):
            compiled = jax.jit(functools.partial(grouped_matmul, target=target)).lower(x, weight, sizes).compile()
        program, text = report(compiled), compiled.as_text()
        print(name, rows, program)
        # Rows in another order, or padded; sums whose last tile is no whole one.
        assert program.temporaries < 4 * (x.size + program.outputs // 4) + (1 << 14), program
        # No conditional and no loop of the host's: all of it can be captured in one command buffer.
        entry = text[text.index("\nENTRY ") :]
        assert not re.search(r" (while|conditional)\(", entry), entry
        kernels = len(re.findall(r" (?:fusion|custom-call)\(", entry))
        assert kernels <= 6, entry  # where items are, rows, the product, and outputs that end in no whole tile


if __name__ == "__main__":
    main(*sys.argv[1:])
