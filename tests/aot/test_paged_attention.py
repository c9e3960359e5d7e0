"""The attention kernels through the real compilers, which find what no interpreter does: tiling, memory, types."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.runtime.topology import report, topology_mesh
from jaxinfer.sharding import TENSOR_AXIS, tensor_size
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, kv_layout, paged_attention
from tests.aot.compilers import needs_libtpu, shared_among_tpus
from tests.pallas_kernels.paged_attention.cases import Shape

# Kernels may ask for 16 MiB unless told otherwise; half of it leaves room for what XLA keeps on the chip beside them.
MOST_VMEM = 8 << 20
BASE: dict[str, Any] = {"tokens": 256, "rows": 32, "pages_per_row": 128, "kv_heads": 8, "group": 4, "head_dim": 128}
SHAPES = (
    # The rows and pages that the engine's defaults make of Llama-3.1-8B: page tables of 2 MiB.
    Shape(dtype=jnp.bfloat16, page_size=16, **{**BASE, "rows": 256, "pages_per_row": 2048}),
    Shape(dtype=jnp.bfloat16, page_size=64, sinks=True, sliding_window=1000, soft_cap=30.0, **BASE),
    Shape(dtype=jnp.bfloat16, page_size=32, **{**BASE, "head_dim": 64, "kv_heads": 16}),
    Shape(dtype=jnp.bfloat16, page_size=32, **{**BASE, "head_dim": 64}),
    Shape(dtype=jnp.bfloat16, page_size=16, **{**BASE, "head_dim": 80}),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.int8, page_size=32, **{**BASE, "head_dim": 96}),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.int8, page_size=32, **BASE),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.float8_e4m3fn, page_size=64, **BASE),
    Shape(dtype=jnp.float32, page_size=16, **{**BASE, "group": 1}),
    Shape(dtype=jnp.bfloat16, page_size=128, **{**BASE, "head_dim": 256, "group": 2}),
)


# A pool of so few pages would fit the VMEM of some generations as a whole. No other axis has this size.
POOL_PAGES = 2053
# An array in VMEM, by its axes.
IN_VMEM = re.compile(r"\w+\[([\d,]+)\]\{[^}]*S\(1\)")


def compiled(
    topology: str, shape: Shape, backend: str = "mosaic_tpu", num_pages: int | None = None
) -> jax.stages.Compiled:
    """The op for all devices of a topology, heads shared among them, pages donated. num_pages: None for the shape's."""
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    kv = kv_layout(
        target, shape.kv_dtype or shape.dtype, shape.kv_heads, shape.head_dim, shape.page_size, tensor_size(mesh)
    )
    pages = kv.struct(num_pages or shape.num_pages, kv.shardings(mesh, TENSOR_AXIS))

    def struct(size: tuple[int, ...], dtype: Any, *spec: str | None) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    num_heads = shape.kv_heads * shape.group
    integers = ((shape.rows + 1,), (shape.rows,), (shape.rows, shape.pages_per_row), (shape.tokens,))
    batch = RaggedBatch(*(struct(size, jnp.int32) for size in integers))
    sinks = struct((num_heads,), jnp.float32, TENSOR_AXIS) if shape.sinks else None
    options = AttentionOptions(0.1, shape.sliding_window, shape.soft_cap)
    attend = functools.partial(
        paged_attention, options=options, target=target, backend=backend, mesh=mesh, head_axis=TENSOR_AXIS
    )

    def op(*arguments: Any) -> Any:
        return attend(*arguments[:-1], sinks=arguments[-1])

    new = struct((shape.tokens, shape.kv_heads, shape.head_dim), shape.dtype, None, TENSOR_AXIS, None)
    q = struct((shape.tokens, num_heads, shape.head_dim), shape.dtype, None, TENSOR_AXIS, None)
    with jax.set_mesh(mesh):
        return jax.jit(op, donate_argnums=(3, 4)).lower(q, new, new, pages, pages, batch, sinks).compile()


@needs_libtpu
@pytest.mark.parametrize(("topology", "dtype"), shared_among_tpus([None, jnp.int8, jnp.float8_e4m3fn]))
def test_long_steps_copy_no_pool(topology: str, dtype: Any) -> None:
    """Found at 1,024 tokens: where the scatter of new keys and values is long, the compiler chose another one."""
    shape = Shape(dtype=jnp.bfloat16, kv_dtype=dtype, page_size=32, **{**BASE, "tokens": 2048, "pages_per_row": 512})
    program = report(compiled(topology, shape))
    devices = tensor_size(topology_mesh(topology).mesh)
    kv = kv_layout(DeviceTarget("tpu", ""), dtype or shape.dtype, shape.kv_heads, shape.head_dim, 32, devices)
    assert program.temporaries < math.prod(kv.shape(shape.num_pages)) * kv.dtype.itemsize // devices


@needs_libtpu
@pytest.mark.parametrize(("topology", "shape"), shared_among_tpus(SHAPES), ids=str)
def test_compiles_for_every_tpu(topology: str, shape: Shape) -> None:
    executable = compiled(topology, shape, num_pages=POOL_PAGES)
    program, text = report(executable), executable.as_text() or ""
    # the pages are updated in place, and no copy of them is made
    devices = tensor_size(topology_mesh(topology).mesh)
    sizes = shape.kv_heads, shape.head_dim, shape.page_size
    kv = kv_layout(DeviceTarget("tpu", ""), shape.kv_dtype or shape.dtype, *sizes, devices)
    pool = math.prod(kv.shape(POOL_PAGES)) * kv.dtype.itemsize
    assert program.donated >= 2 * pool // devices
    assert program.temporaries < pool // devices, (program.temporaries, pool // devices)
    assert program.collectives == {}
    assert set(program.kernels) == {"write_pages", "paged_attention_decode", "paged_attention_tiles"}
    assert max(program.kernels.values()) <= MOST_VMEM, program.kernels
    assert " scatter(" not in text
    # kernels read some pages of a pool, once: it stays where it is
    assert f"[{POOL_PAGES}," in text
    assert not [axes for axes in IN_VMEM.findall(text) if str(POOL_PAGES) in axes.split(",")]
