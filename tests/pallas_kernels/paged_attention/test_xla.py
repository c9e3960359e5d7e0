"""The XLA backend: the contract on CPU, and what its memory does."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, kv_layout, paged_attention
from tests.pallas_kernels.paged_attention.cases import Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES, PagedAttentionContract

CPU = DeviceTarget("cpu", "cpu")

# What other shapes have one by one, together: wide heads and layouts that are made for devices.
COMBINED = (8, 12, 13, 14)


class TestXla(PagedAttentionContract):
    target = CPU
    backend = "xla"

    @pytest.mark.parametrize(
        "shape",
        [pytest.param(s, marks=[pytest.mark.longer] * (i in COMBINED), id=str(s)) for i, s in enumerate(SHAPES)],
    )
    def test_matches_the_oracle(self, shape: Shape) -> None:
        super().test_matches_the_oracle(shape)


def compiled(dtype: jax.typing.DTypeLike, num_pages: int) -> jax.stages.Compiled:
    tokens, rows, kv_heads, head_dim, page_size = 64, 16, 2, 64, 64
    kv = kv_layout(CPU, dtype, kv_heads, head_dim, page_size)
    heads = jax.ShapeDtypeStruct((tokens, kv_heads, head_dim), dtype)
    batch = RaggedBatch(
        *(jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((rows + 1,), (rows,), (rows, 32), (tokens,)))
    )
    op = functools.partial(paged_attention, options=AttentionOptions(0.125), target=CPU)
    args = (heads, heads, heads, kv.struct(num_pages), kv.struct(num_pages), batch)
    return jax.jit(op, donate_argnums=(3, 4)).lower(*args).compile()


@pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.longer), jnp.bfloat16], ids=["float32", "bfloat16"]
)
def test_temporaries_do_not_grow_with_the_pool_and_pages_are_updated_in_place(dtype):
    few, many = compiled(dtype, 100).memory_analysis(), compiled(dtype, 1000).memory_analysis()
    assert many.temp_size_in_bytes == few.temp_size_in_bytes
    assert many.alias_size_in_bytes == 1000 * kv_layout(CPU, dtype, 2, 64, 64).bytes_per_page
    np.testing.assert_array_less(many.temp_size_in_bytes, many.alias_size_in_bytes / 10)
