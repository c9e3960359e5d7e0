"""Compiles one product with a quantized weight for a device that is not here, and prints what XLA makes of it.

    python scripts/compile_products.py --topology v5e:2x2 [--outputs 28672] [--inputs 4096] [--tokens 8,256]

For every scheme: the weight as that device keeps it, the temporaries (a weight that was written out wide is among
them), and the bytes that the compiler counts as moved, over those that must be: weight, scales, activations, result.
This is how it is decided which formats need a kernel of their own. Packages as for `compile_for.py`; nothing runs.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the compilers are asked for, no device is

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from jaxinfer.config import ConfigError
from jaxinfer.quantization import SCHEMES
from jaxinfer.runtime.topology import LIBTPU_ENVIRONMENT, ProgramReport, report, topology_mesh
from jaxinfer.sharding import tensor_mesh
from pallas_kernels.dispatch import DeviceTarget, Unsupported
from pallas_kernels.qtensor import QTensor, quantize
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_matmul.layout import for_target


class Compiled(NamedTuple):
    """weight: bytes of it, with scales; needed: those that must be moved at least."""

    weight: int
    needed: int
    program: ProgramReport


def compile_product(
    device: jax.Device, scheme_name: str, tokens: int, outputs: int, inputs: int, backend: str | None = None
) -> Compiled:
    """One product (tokens, inputs) x (outputs, inputs) of bfloat16 activations, on one device of a topology."""
    target, scheme = DeviceTarget.of(device), SCHEMES[scheme_name]

    def kept(weight: jax.Array) -> QTensor:
        group = scheme.groups[0] if scheme.groups else None
        return for_target(quantize(weight, scheme.kind, group, activations=scheme.activations), target)

    def struct(shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=SingleDeviceSharding(device))

    shapes = jax.eval_shape(kept, jax.ShapeDtypeStruct((outputs, inputs), jnp.float32))
    weight = jax.tree.map(lambda x: struct(x.shape, x.dtype), shapes)
    size = sum(
        leaf.size * (1 if leaf.dtype == jnp.int4 else 2 * leaf.dtype.itemsize) // 2 for leaf in jax.tree.leaves(weight)
    )
    product = functools.partial(quantized_matmul, target=target, backend=backend)
    with jax.set_mesh(tensor_mesh([device])):  # kernels ask it for the device
        program = report(jax.jit(product).lower(struct((tokens, inputs), jnp.bfloat16), weight).compile())
    return Compiled(size, size + 2 * tokens * inputs + 4 * tokens * outputs, program)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", required=True, help="v5e:2x2, v6e:2x2, v5p:2x2x1, tpu7x:2x2x1, hopper:1, ...")
    parser.add_argument("--outputs", type=int, default=28672)
    parser.add_argument("--inputs", type=int, default=4096)
    parser.add_argument("--tokens", default="8,256", help="rows of activations, with commas (default 8,256)")
    parser.add_argument("--backend", help="of the product, by name; default: the first that can serve")
    arguments = parser.parse_args(argv)
    for name, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        device = topology_mesh(arguments.topology).mesh.devices.flat[0]
        table = Table("scheme", "tokens", "weight MB", "temporaries MB", "moved MB", "moved / needed", box=None)
        for scheme in SCHEMES:
            for tokens in map(int, arguments.tokens.split(",")):
                sizes = (tokens, arguments.outputs, arguments.inputs)
                table.add_row(scheme, str(tokens), *_cells(compile_product(device, scheme, *sizes, arguments.backend)))
    except (ConfigError, Unsupported, ValueError) as error:
        print(f"compile_products: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    console = Console(highlight=False, width=120)
    console.print(f"{arguments.outputs:,} x {arguments.inputs:,} for {device.device_kind}")
    console.print(table)
    return 0


def _cells(compiled: Compiled) -> list[str]:
    moved = compiled.program.bytes_accessed
    ratio = "-" if not moved else f"{moved / compiled.needed:.2f}"
    sizes = (compiled.weight, compiled.program.temporaries, moved)
    return [*("-" if size is None else f"{size / 1e6:,.1f}" for size in sizes), ratio]


if __name__ == "__main__":
    sys.exit(main())
