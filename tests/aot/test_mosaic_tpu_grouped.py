"""The grouped product's TPU kernel through the real compiler: it lowers, fits the chip, and copies no weight."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.runtime.topology import ProgramReport, report, topology_mesh
from jaxinfer.sharding import tensor_mesh
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import grouped_matmul
from pallas_kernels.grouped_matmul.mosaic_tpu_plan import most_vmem
from pallas_kernels.qtensor import quantize
from pallas_kernels.quantized_matmul.layout import for_target
from tests.aot.compilers import TPUS, needs_libtpu

Shape = tuple[int, tuple[int, ...], int]
QWEN3 = ((128, (2, 768), 2048), (128, (2048,), 768))  # Qwen3-30B-A3B
QWEN3_QUARTER = ((128, (2, 192), 2048), (128, (2048,), 192))  # on each of four devices
GPT_OSS = ((32, (2, 2880), 2880), (32, (2880,), 2880))
GPT_OSS_HALF = ((32, (2, 1440), 2880), (32, (2880,), 1440))
MIXTRAL = ((8, (2, 14336), 4096), (8, (4096,), 14336))
_WORK = 1 << 20  # bytes: the list of work is a few kilobytes, which XLA makes of as many small arrays


@needs_libtpu
@pytest.mark.parametrize("topology", TPUS)
def test_decode_steps_and_a_chunk(topology: str) -> None:
    for shape, rows, group in (
        (QWEN3[0], 8, None),
        (QWEN3_QUARTER[1], 64, None),  # outputs lie in the lanes
        (QWEN3[1], 64, 128),  # scales of 8 experts lie abreast
        (GPT_OSS[1], 512, None),
        (MIXTRAL[1], 4096, None),
    ):
        _check(topology, shape, rows, group)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize("topology", TPUS)
def test_every_shape(topology: str) -> None:
    for shape in (*QWEN3, *QWEN3_QUARTER, *GPT_OSS, *GPT_OSS_HALF, *MIXTRAL):
        for group in (None, 128, 64):
            inputs = shape[2]
            if group is not None and (inputs % group or inputs % 64):
                continue
            for rows in (8, 64, 512, 4096):
                _check(topology, shape, rows, group)
    _check(topology, QWEN3[0], 8, 128, dtype=jnp.float32)


@needs_libtpu
def test_what_xla_serves_copies_no_experts() -> None:
    """Arrays in float32: a turn for each expert that has rows, and no weight is written."""
    _, program = compiled("v5e:2x2", QWEN3[0], 64, None, jnp.float32)
    assert not program.kernels
    assert program.temporaries <= _WORK, program


def _check(topology: str, shape: Shape, rows: int, group: int | None, *, dtype: Any = jnp.bfloat16) -> None:
    """Beside the sums and activations nothing is written to memory, least of all a weight."""
    target, program = compiled(topology, shape, rows, group, dtype)
    named = (shape, rows, group, program)
    _, outputs, inputs = shape
    # Sums that lie output axis by output axis, or as one, are laid down once more as rows.
    sums = 2 * 4 * math.prod(outputs) + 2 * inputs
    assert program.temporaries <= 1.2 * max(rows, 16) * sums + _WORK, named
    assert set(program.kernels) == {"grouped_matmul"}, named
    assert program.kernels["grouped_matmul"] <= most_vmem(target.device_kind), named


def compiled(
    topology: str, shape: Shape, rows: int, group: int | None, dtype: Any
) -> tuple[DeviceTarget, ProgramReport]:
    """The product on one device, with weights of the activations' type or with int4 in groups."""
    mesh = tensor_mesh([topology_mesh(topology).mesh.devices.flat[0]])
    target = DeviceTarget.of(mesh.devices.flat[0])
    experts, outputs, inputs = shape

    def arguments() -> Any:
        wide = jnp.zeros((experts, *outputs, inputs), dtype)
        weight = wide if group is None else for_target(quantize(wide, "int4", group), target, leading=1)
        return jnp.zeros((rows, inputs), dtype), weight, jnp.zeros(experts, jnp.int32)

    sharding = NamedSharding(mesh, PartitionSpec())
    given = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), jax.eval_shape(arguments))
    with jax.set_mesh(mesh):
        program = jax.jit(lambda *args: grouped_matmul(*args, target=target)).lower(*given).compile()
    return target, report(program)
