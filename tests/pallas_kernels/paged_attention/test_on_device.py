"""The attention backends on the device itself: `pytest -m gpu`, `pytest -m tpu`. Elsewhere everything skips.

The contract that the interpreters run, and steps of a server's size against dense attention in float32.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, paged_attention
from pallas_kernels.paged_attention.api import OP
from tests.pallas_kernels.paged_attention import cases, long_rows
from tests.pallas_kernels.paged_attention.cases import Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES, TOLERANCE, PagedAttentionContract
from tests.pallas_kernels.paged_attention.test_mosaic_gpu import SHAPES as MORE_SHAPES

# (query tokens, tokens of the sequence with them); the second is what a rehearsal runs.
DECODE = [(1, length) for length in np.random.default_rng(0).integers(2048, 8193, 32).tolist()]
STEPS = {
    "decode": (DECODE, [(1, 70), (1, 33)]),
    "one-long-row": ([(1, 8192)], [(1, 100)]),
    "prompt": ([(8192, 8192)], [(100, 100)]),
    "mixed": ([*DECODE[:15], (1000, 3000), (1, 1), (37, 37)], [(1, 70), (40, 90), (1, 1)]),
}
PAGES = ((16, jnp.bfloat16), (64, jnp.bfloat16), (64, jnp.int8), (128, jnp.float8_e4m3fn))


class OnDevice(PagedAttentionContract):
    """`dtype`: of the queries in tests that do not come with shapes of their own."""

    seeds = range(2)
    dtype: Any = jnp.bfloat16

    @pytest.fixture(autouse=True)
    def _on_the_device(self, device: str) -> None:
        named = {backend.name: backend for backend in OP.backends}
        if self.backend not in named:
            pytest.skip(f"this version has no backend {self.backend!r}")
        usual = Shape(dtype=self.dtype, head_dim=128, page_size=32)
        if (reason := self.refusal(usual)) is not None:
            pytest.skip(reason)

    @property
    def target(self) -> DeviceTarget:
        return DeviceTarget.of(jax.devices()[0])

    @pytest.mark.parametrize("shape", MORE_SHAPES, ids=str)
    def test_what_the_contract_leaves_out(self, shape: Shape) -> None:
        if (reason := self.refusal(shape)) is not None:
            pytest.skip(reason)
        for number, recipe in enumerate(cases.RECIPES):
            rng = np.random.default_rng((number, 5))
            self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)

    def test_pages_shared_between_rows(self) -> None:
        shape = Shape(dtype=self.dtype, head_dim=128)
        rows = [(1, 60), (20, 70), (1, 49), (5, 53)]  # all write behind their first three pages
        self.check(cases.build(shape, self.target, rows, np.random.default_rng(7), shared_prefix_pages=3), shape)

    @pytest.mark.parametrize("soft_cap", [None, 3.0])
    def test_huge_logits(self, soft_cap: float | None) -> None:
        shape = dataclasses.replace(SHAPES[1], dtype=self.dtype, head_dim=128, soft_cap=soft_cap)
        for seed in self.seeds:
            rng = np.random.default_rng(seed)
            rows = cases.ragged_mix(shape, rng)
            self.check(cases.build(shape, self.target, rows, rng, query_scale=1e8), shape)

    @pytest.mark.parametrize(("page_size", "kv_dtype"), PAGES, ids=lambda value: str(getattr(value, "__name__", value)))
    @pytest.mark.parametrize("name", STEPS)
    def test_the_size_of_a_server(self, name: str, page_size: int, kv_dtype: Any, rehearsed: bool) -> None:
        """Right, the same bits when it runs again, and nothing written but the step's own keys and values."""
        heads = (2, 4, 64) if rehearsed else (8, 4, 128)
        shape = Shape(dtype=jnp.bfloat16, kv_dtype=kv_dtype, page_size=page_size, kv_heads=heads[0], head_dim=heads[2])
        if (reason := self.refusal(shape)) is not None:
            pytest.skip(reason)
        scale = 3.0 * heads[2] ** -0.5  # some keys stand out
        step = long_rows.build(self.target, STEPS[name][rehearsed], page_size, kv_dtype, heads)
        run = _program(self.target, self.backend, scale)
        out, *pages = run(*step.args)
        again, *_ = run(*step.args)
        np.testing.assert_array_equal(_bits(out), _bits(again), err_msg="two runs differ")
        want = long_rows.expected(step, scale)
        error = jnp.abs(out.astype(jnp.float32) - want).max(axis=(1, 2)) / jnp.abs(want).max(axis=(1, 2))
        worst = int(jnp.argmax(error))  # argmax finds a NaN first
        assert float(error[worst]) <= TOLERANCE[np.dtype(jnp.bfloat16)], f"token {worst}: {float(error[worst]):.2e}"
        for got, expected in zip(jax.tree.leaves(pages), jax.tree.leaves(step.expected_pages), strict=True):
            np.testing.assert_array_equal(_bits(got[1:]), _bits(expected[1:]), err_msg="pages")


@functools.lru_cache
def _program(target: DeviceTarget, backend: str, scale: float) -> Any:
    """Does not donate: the inputs serve twice."""
    return jax.jit(functools.partial(paged_attention, options=AttentionOptions(scale), target=target, backend=backend))


def _bits(array: jax.Array) -> np.ndarray:
    values = np.asarray(array)
    return values.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[values.itemsize])


@pytest.mark.gpu
class TestMosaicGpu(OnDevice):
    backend = "mosaic_gpu"


@pytest.mark.gpu
class TestTritonGpu(OnDevice):
    backend = "triton_gpu"


@pytest.mark.tpu
class TestMosaicTpu(OnDevice):
    backend = "mosaic_tpu"


@pytest.mark.gpu
@pytest.mark.tpu
class TestXla(OnDevice):
    backend = "xla"
