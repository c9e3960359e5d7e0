"""The Triton kernel of the quantized product through the real compilers, from Ampere to Blackwell, down to the
assembler's report. `triton_compiler.py` says what it needs.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from jaxinfer.runtime.topology import report
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.quantized_matmul import quantized_matmul
from tests.aot.triton_compiler import CARDS, NEEDS, compile_elsewhere, tell, topology
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product

BASE = Product("int4", outputs=(6144,), inputs=4096, group=128, dtype=jnp.bfloat16)
FORMATS = {
    "int4": BASE,
    "int4-zeros": dataclasses.replace(BASE, zeros=True),
    "int4-groups-of-32": dataclasses.replace(BASE, group=32, zeros=True),
    "int4-groups-of-64": dataclasses.replace(BASE, group=64),
    "int4-plain": dataclasses.replace(BASE, group=None),
    "int4-any": dataclasses.replace(BASE, outputs=(77,), inputs=1100, group=None, zeros=True),
    "int4-float32": dataclasses.replace(BASE, dtype=jnp.float32, zeros=True),
    "int8": dataclasses.replace(BASE, kind="int8", group=None),
    "int8-float32": dataclasses.replace(BASE, kind="int8", group=None, dtype=jnp.float32),
    "fp8": dataclasses.replace(BASE, kind="fp8", group=None),
    "fp8-groups": dataclasses.replace(BASE, kind="fp8"),
}
ROWS = (1, 64, 512)  # one of each of the plan's sizes
SPILLS = 64  # at most so many bytes, sixteen registers, go to the level 1 cache and back
COMMON = ("int4-zeros", "fp8-groups")
INT4 = ("int4", "int4-groups-of-32", "int4-groups-of-64", "int4-plain")

pytestmark = NEEDS


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("capability", "name"),
    [
        *((80, name) for name in FORMATS),
        *((89, name) for name in COMMON),
        *((card, "int4-zeros") for card in (100, 120)),
        *(pytest.param(card, name, marks=pytest.mark.slow) for card in (86, 90, 103, 121) for name in COMMON),
        *(pytest.param(card, name, marks=pytest.mark.slow) for card in CARDS if card != 80 for name in INT4),
    ],
)
def test_compiles_within_the_card(capability: int, name: str, tmp_path: Path) -> None:
    kernels = compile_elsewhere(__name__, tmp_path, capability, name)
    assert len(kernels) == len(ROWS)
    wide = FORMATS[name].dtype == jnp.float32
    for kernel in kernels:
        assert kernel["target"] == f"sm_{capability}" + ("a" if capability >= 90 else "")
        assert kernel["shared"] <= CARDS[capability]["shared"], kernel
        assert max(kernel["spills"]) <= SPILLS, kernel
        if name != "int4-any":  # whose rows begin anywhere
            assert kernel["ahead"] > 0, "weights must be on their way while others are multiplied"
        assert (kernel["products"] == 0) == wide, kernel
        assert kernel["tf32"] == 0, kernel


def main(capability: int, name: str) -> None:
    """Compiles one format, and checks that no wide weight is written."""
    device = topology(capability, 1).mesh.devices.flat[0]
    target = DeviceTarget.of(device)

    def shape(array: jax.Array, leading: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*leading, array.shape[-1]), array.dtype, sharding=SingleDeviceSharding(device))

    product = FORMATS[name]
    x, weight = cases.build(dataclasses.replace(product, outputs=(1,), tokens=1), np.random.default_rng(0))
    weight = jax.tree.map(lambda array: shape(array, product.outputs), weight)
    run = functools.partial(quantized_matmul, target=target, backend="triton_gpu")
    for rows in ROWS:
        program = report(jax.jit(run).lower(shape(x, (rows,)), weight).compile())
        activations = 2 * rows * product.inputs * x.dtype.itemsize  # in the kernel's order, and as they were
        sums = 4 * rows * product.outputs[0] * 16  # of every part, if there are
        assert program.temporaries <= activations + sums, (rows, program)
    tell()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
