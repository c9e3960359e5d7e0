"""The TPU kernel for int4 weights through the real compiler: it lowers, fits the chip, and copies no weight."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxinfer.models.parameters import ParameterFacts
from jaxinfer.models.stored_matrix import StoredMatrix
from jaxinfer.quantization import placing_of
from jaxinfer.runtime.topology import ProgramReport, report, topology_mesh
from jaxinfer.sharding import TENSOR_AXIS, LogicalAxes, split_of, tensor_mesh, tensor_size
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import quantized_matmul
from tests.aot.compilers import TPUS, needs_libtpu

# Kernels may ask for 16 MiB unless told otherwise; some of it is for what XLA keeps on the chip beside them.
MOST_VMEM = 12 << 20


def compiled(
    mesh: Mesh, tokens: int, outputs: tuple[int, ...], inputs: int, axes: LogicalAxes, *, dtype: Any, **stored: Any
) -> tuple[QTensor, ProgramReport]:
    """A product with a weight that a checkpoint stores in int4, as the mesh's devices keep it, split by `axes`."""
    matrix = StoredMatrix("int4", **stored)
    weight = placing_of("a matrix", (*outputs, inputs), ParameterFacts(axes, 1), matrix, mesh).abstract()
    split_inputs = TENSOR_AXIS if axes[-1] is not None else None
    x = jax.ShapeDtypeStruct((tokens, inputs), dtype, sharding=NamedSharding(mesh, PartitionSpec(None, split_inputs)))

    def product(x: jax.Array, weight: QTensor) -> jax.Array:
        return quantized_matmul(x, weight, merge=False, split=split_of(axes))

    with jax.set_mesh(mesh):
        return weight, report(jax.jit(product).lower(x, weight).compile())


def one_device(topology: str) -> Mesh:
    device = topology_mesh(topology).mesh.devices.flat[0]
    return tensor_mesh([device])


@needs_libtpu
@pytest.mark.parametrize("topology", TPUS)
@pytest.mark.parametrize("tokens", [1, 16, 256, 512])
def test_a_decode_step_and_a_chunk_write_no_weight(topology: str, tokens: int) -> None:
    """Beside the sums and activations, padded to whole tiles, nothing is written to memory."""
    outputs, inputs = 14336, 4096
    _, program = compiled(
        one_device(topology), tokens, (outputs,), inputs, (None, None), dtype=jnp.bfloat16, group=128, zeros=True
    )
    small = 1.2 * max(tokens, 16) * (4 * outputs + 2 * inputs)
    assert program.temporaries <= small, program
    assert set(program.kernels) == {"quantized_matmul"}
    assert program.kernels["quantized_matmul"] <= MOST_VMEM, program.kernels


@needs_libtpu
@pytest.mark.parametrize("topology", TPUS)
def test_every_form_compiles(topology: str) -> None:
    """Groups of all sizes, sizes that fill no tile, many groups, activations in float32."""
    mesh = one_device(topology)
    for tokens, outputs, inputs, group, dtype in (
        (8, (200,), 192, 64, jnp.bfloat16),
        (3, (48,), 64, 32, jnp.float32),
        (256, (2, 1376), 4096, 32, jnp.bfloat16),
        (64, (4096,), 14336, 32, jnp.bfloat16),
        (16, (4096,), 14336, None, jnp.bfloat16),
        (100, (8, 6, 64), 2048, 16, jnp.float32),
        (1024, (4096,), 28672, 64, jnp.bfloat16),
    ):
        axes = (None,) * (len(outputs) + 1)
        for zeros in (False, True):
            sizes = mesh, tokens, outputs, inputs, axes
            weight, program = compiled(*sizes, dtype=dtype, group=group, zeros=zeros)
            assert weight.packed_outputs == outputs[1:]
            assert set(program.kernels) == {"quantized_matmul"}, (tokens, outputs, inputs, group)
            assert program.kernels["quantized_matmul"] <= MOST_VMEM, (tokens, outputs, inputs, group, program.kernels)


@needs_libtpu
@pytest.mark.parametrize("topology", TPUS)
@pytest.mark.parametrize(
    ("outputs", "inputs", "axes", "collectives"),
    [
        ((16, 6, 128), 4096, ("kv_heads", None, None, None), set()),
        ((2, 14336), 4096, (None, "mlp", None), set()),
        ((4096,), 14336, (None, "mlp"), {"all-reduce"}),
    ],
    ids=["heads", "gate_up", "down"],
)
def test_each_device_runs_it_with_its_share(
    topology: str, outputs: tuple[int, ...], inputs: int, axes: LogicalAxes, collectives: set[str]
) -> None:
    mesh = topology_mesh(topology).mesh
    weight, program = compiled(mesh, 8, outputs, inputs, axes, dtype=jnp.bfloat16, group=128, zeros=True)
    share = math.prod(outputs) * inputs // 2 // tensor_size(mesh)
    assert weight.packed_outputs is not None
    assert set(program.kernels) == {"quantized_matmul"}
    assert set(program.collectives) == collectives
    assert program.temporaries < share // 4, (program.temporaries, share)
