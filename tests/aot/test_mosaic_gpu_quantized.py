"""The Hopper kernel of the quantized product through the real compilers, down to the machine code's assembler.

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
from jaxinfer.sharding import TENSOR_AXIS, tensor_size
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.mosaic_gpu_support import REGISTERS
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_matmul.mosaic_gpu_plan import plan_of
from tests.aot.compilers import needs_cuda
from tests.aot.elsewhere import run_elsewhere

pytestmark = [needs_cuda, pytest.mark.timeout(300)]
KERNEL = "quantized_matmul_int4"


@dataclasses.dataclass(frozen=True)
class Case:
    """Products of `tokens` each with one weight; `split` is that of the weight over the mesh."""

    tokens: tuple[int, ...]
    outputs: tuple[int, ...] = (4096,)
    inputs: int = 4096
    group: int = 128
    zeros: bool = False
    split: PartitionSpec | None = None


CASES = {
    "decode": Case((1, 16, 32), (28672,)),
    "prompt": Case((64, 128, 512), (28672,)),
    "zeros": Case((16, 32, 128), zeros=True),
    "groups-of-64": Case((8, 32, 128), inputs=14336, group=64, zeros=True),
    "groups-of-32": Case((8, 32, 128), group=32),
    "groups-of-32-zeros": Case((8, 32, 128), group=32, zeros=True),
    "whole-inputs": Case((8, 128), (1096,), inputs=896, group=896, zeros=True),
    "odd-sizes": Case((1, 40), (72,), inputs=96, group=96),
}
SPLIT = {
    "column": Case((8,), (2, 14336), split=PartitionSpec(None, TENSOR_AXIS, None)),
    "row": Case((8,), (4096,), inputs=14336, split=PartitionSpec(None, TENSOR_AXIS)),
}


def compile_elsewhere(topology: str, name: str) -> str:
    """What a process that compiles the programs of one case prints: the assembler's reports."""
    done = run_elsewhere(__name__, topology, name, environment={"MOSAIC_GPU_DUMP_PTXAS": "1"})
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_compiles_for_hopper_without_spills(name: str) -> None:
    """No wide weight is written, and nothing is spilled from registers."""
    text = compile_elsewhere("hopper:1", name)
    entries = re.findall(rf"Compiling entry function '{KERNEL}_mosaic_gpu_kernel' for 'sm_90a'", text)
    assert len(entries) == len(CASES[name].tokens), text
    spilled = [int(size) for size in re.findall(r"(\d+) bytes spill (?:stores|loads)", text)]
    assert len(spilled) >= 2 * len(entries)
    assert max(spilled) == 0, text
    assert "serialized" not in text, text  # what ptxas says where it makes products wait for each other
    used = [int(count) for count in re.findall(r"Used (\d+) registers", text)]
    for tokens, registers in zip(CASES[name].tokens, used, strict=True):
        check_registers(CASES[name], tokens, registers)


def check_registers(case: Case, tokens: int, registers: int) -> None:
    """Warpgroups that ask for more registers than a block of threads started with would wait for ever."""
    plan = plan_of(tokens, math.prod(case.outputs), case.inputs, case.group, zeros=case.zeros)
    if plan.warpgroups in REGISTERS:
        compute, copy = REGISTERS[plan.warpgroups]
        assert plan.warpgroups * compute + copy <= (plan.warpgroups + 1) * registers


@pytest.mark.parametrize("name", SPLIT)
def test_compiles_for_four_devices(name: str) -> None:
    """Every device multiplies by its own share; only sums over split inputs are exchanged."""
    assert f"Compiling entry function '{KERNEL}" in compile_elsewhere("hopper:4", name)


def main(topology: str, name: str) -> None:
    """Compiles the programs of a case, and checks what they keep in memory and what they exchange."""
    case = (CASES | SPLIT)[name]
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    split = PartitionSpec() if case.split is None else case.split

    def struct(shape: tuple[int, ...], dtype: jax.typing.DTypeLike, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    factors = struct((*case.outputs, case.inputs // case.group), jnp.float32, split)
    values = struct((*case.outputs, case.inputs // 2), jnp.uint8, split)
    zeros = struct(factors.shape, jnp.uint8, split) if case.zeros else None
    weight = QTensor(values, factors, zeros, kind="int4")  # type: ignore[arg-type]
    product = functools.partial(quantized_matmul, target=target, backend="mosaic_gpu", split=case.split, merge=False)
    for tokens in case.tokens:
        x = struct((tokens, case.inputs), jnp.bfloat16, PartitionSpec())
        with jax.set_mesh(mesh):
            program = report(jax.jit(product).lower(x, weight).compile())
        print(name, tokens, program)
        wide = 2 * weight.values.size * 2 // tensor_size(mesh)
        sums = 4 * tokens * weight.values.size // weight.values.shape[-1]  # of all parts
        assert program.temporaries < max(wide // 8, 40 * sums, 1 << 16), program
        summed = case.split is not None and case.split[-1] is not None
        assert set(program.collectives) == ({"all-reduce"} if summed else set()), program.collectives


if __name__ == "__main__":
    main(*sys.argv[1:])
