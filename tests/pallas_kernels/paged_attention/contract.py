"""What every backend of paged attention must do. A backend's test subclasses `PagedAttentionContract`."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget, Unsupported, select
from pallas_kernels.paged_attention import AttentionOptions, paged_attention, reference
from pallas_kernels.paged_attention.api import OP, PagedAttentionCase
from tests.pallas_kernels.contract import OpContract
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape

# Relative to a token's largest output. float32: many times the 1e-7 of a rounding, for sums of hundreds. bfloat16: the
# output is rounded to 8 bits (4e-3), and a backend may round probabilities to bfloat16 as well.
TOLERANCE = {np.dtype(jnp.float32): 1e-5, np.dtype(jnp.bfloat16): 1e-2}

SHAPES = (
    Shape(),
    Shape(dtype=jnp.bfloat16, page_size=64, pages_per_row=4, group=4),
    Shape(tokens=40, rows=6, page_size=128, pages_per_row=3, kv_heads=3, group=3, head_dim=16, soft_cap=3.0),
    Shape(tokens=40, rows=5, page_size=64, pages_per_row=4, kv_heads=1, group=8, head_dim=128, sliding_window=50),
    Shape(dtype=jnp.bfloat16, rows=4, page_size=1, pages_per_row=90, group=1, head_dim=80, sliding_window=16),
    Shape(tokens=24, rows=3, pages_per_row=9, group=3, head_dim=80, sliding_window=1, soft_cap=20.0),
    Shape(tokens=8, rows=1, page_size=5, pages_per_row=30, kv_heads=1, group=1, head_dim=16),
    Shape(tokens=40, rows=6, page_size=32, pages_per_row=4, group=3, sliding_window=40, sinks=True),
    Shape(dtype=jnp.bfloat16, rows=6, page_size=32, pages_per_row=4, group=4, head_dim=128, sinks=True),
    Shape(kv_dtype=jnp.int8, tokens=40, rows=6, page_size=32, pages_per_row=4, group=2),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.int8, rows=5, page_size=64, pages_per_row=3, group=4, head_dim=128),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.float8_e4m3fn, rows=5, page_size=16, pages_per_row=9, group=4, head_dim=96),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.float8_e4m3fn, rows=5, page_size=32, pages_per_row=5, group=2, head_dim=128),
    Shape(tokens=40, rows=6, page_size=16, pages_per_row=9, group=3, head_dim=128, sinks=True, soft_cap=20.0),
    Shape(dtype=jnp.bfloat16, rows=4, tokens=40, page_size=32, pages_per_row=4, kv_heads=1, group=2, head_dim=256),
)

# Those of the shapes above whose rows are longer than their window, and one that the kernels for GPUs serve.
WINDOWED = (
    *(shape for shape in SHAPES if shape.sliding_window is not None),
    Shape(dtype=jnp.bfloat16, kv_dtype=jnp.int8, rows=4, page_size=32, pages_per_row=5, head_dim=64, sliding_window=50),
)


class PagedAttentionContract(OpContract):
    """Compares a backend with the oracle. Override `target` and `backend`, and `call` if it needs more than that."""

    seeds = range(3)
    recipes = cases.RECIPES

    def call(self, inputs: Inputs, shape: Shape) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Runs the op on one step's inputs; compiles once per shape. Donates the pages."""
        return _compiled(shape, self.target, self.backend)(*inputs.args, inputs.sinks)

    def refusal(self, shape: Shape) -> str | None:
        """Why the backend does not serve a shape, if it does not."""
        named = {backend.name: backend for backend in OP.backends}
        return named[self.backend].supports(self.target, case_of(shape))

    def check(self, inputs: Inputs, shape: Shape) -> None:
        """Runs the backend and the oracle on the same inputs; raises AssertionError where they differ."""
        want, want_k, want_v = reference.paged_attention(
            *inputs.args,
            options=options_of(shape),
            sinks=inputs.sinks,
        )
        page_shape, storage = inputs.k_pages.shape, inputs.k_pages.dtype
        out, k_pages, v_pages = self.call(inputs, shape)
        chex.assert_shape(out, inputs.q.shape)
        chex.assert_type(out, inputs.q.dtype)
        for pages in (k_pages, v_pages):
            assert pages.shape == page_shape
            assert pages.dtype == storage
        out = np.asarray(out).astype(np.float32)
        real = int(inputs.batch.query_start_loc[-1])
        chex.assert_tree_all_finite(out)
        np.testing.assert_array_equal(out[real:], 0.0, err_msg="padding")
        error = np.abs(out - want).max(axis=(1, 2))[:real]
        size = np.abs(want).max(axis=(1, 2))[:real]
        worst = int((error / size).argmax()) if real else 0
        assert not real or error[worst] <= TOLERANCE[np.dtype(shape.dtype)] * size[worst], (
            f"token {worst}: error {error[worst] / size[worst]:.2e}; rows (query, length) {inputs.rows}"
        )
        # Padding tokens share slots of the null page, in no order. Everywhere else bits are compared, as NaN != NaN.
        unwritten = np.setdiff1d(np.arange(shape.page_size), np.asarray(inputs.batch.slot_mapping)[real:])
        for name, got, expected in (("k_pages", k_pages, want_k), ("v_pages", v_pages, want_v)):
            for part, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
                part, wanted = _bits(part), _bits(wanted)
                np.testing.assert_array_equal(part[1:], wanted[1:], err_msg=name)
                part, wanted = part[0][:, unwritten], wanted[0][:, unwritten]
                np.testing.assert_array_equal(part, wanted, err_msg=f"{name}, null page")

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_matches_the_oracle(self, shape: Shape) -> None:
        """Or says by name why it does not serve the shape."""
        if (reason := self.refusal(shape)) is not None:
            with pytest.raises(Unsupported, match=re.escape(reason)):
                select(OP, self.target, case_of(shape), self.backend)
            return
        for number, recipe in enumerate(self.recipes):
            for seed in self.seeds:
                rng = np.random.default_rng((number, seed))
                self.check(cases.build(shape, self.target, recipe(shape, rng), rng), shape)

    def test_pages_shared_between_rows(self) -> None:
        shape, rng = dataclasses.replace(SHAPES[0], head_dim=128), np.random.default_rng(7)
        rows = [(1, 60), (20, 70), (1, 49), (5, 53)]  # all write behind their first three pages
        self.check(cases.build(shape, self.target, rows, rng, shared_prefix_pages=3), shape)

    @pytest.mark.parametrize("shape", WINDOWED, ids=str)
    def test_pages_behind_the_window_may_be_given_back(self, shape: Shape) -> None:
        """Their entries are the null page then, which holds NaN here: no bit of the output may change."""
        if self.refusal(shape) is not None:
            pytest.skip("not served: another test checks how that is said")
        rows = [(1, shape.capacity), (min(20, shape.tokens - 3), shape.capacity - 1), (1, shape.capacity // 2)]
        kept, freed = (
            cases.build(shape, self.target, rows, np.random.default_rng(11), freed=freed) for freed in (False, True)
        )
        assert np.any(np.asarray(freed.batch.page_tables)[0] == 0)
        self.check(freed, shape)
        freed = cases.build(shape, self.target, rows, np.random.default_rng(11), freed=True)  # the pages were donated
        out, _, _ = self.call(kept, shape)
        again, _, _ = self.call(freed, shape)
        np.testing.assert_array_equal(_bits(out), _bits(again))

    @pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
    def test_huge_logits(self, shape: Shape) -> None:
        """Scores of about 1e8: one key takes all, or, under a soft cap, half the keys share."""
        shape = dataclasses.replace(shape, head_dim=128)
        for seed in self.seeds:
            rng = np.random.default_rng(seed)
            rows = cases.ragged_mix(shape, rng)
            self.check(cases.build(shape, self.target, rows, rng, query_scale=1e8), shape)

    @pytest.mark.parametrize("shape", [*SHAPES[1:3], SHAPES[10]], ids=str)
    def test_scores_of_minus_infinity(self, shape: Shape) -> None:
        """A third of the keys weighs nothing, whichever block they lie in, whole blocks among them."""
        if self.refusal(shape) is not None:
            pytest.skip("not served: another test checks how that is said")
        for seed in self.seeds:
            rng = np.random.default_rng((seed, 3))
            rows = cases.ragged_mix(shape, rng)
            self.check(cases.build(shape, self.target, rows, rng, drowned=0.34), shape)
            self.check(cases.build(shape, self.target, rows, rng, drowned=1.0), shape)


def case_of(shape: Shape) -> PagedAttentionCase:
    """What dispatch is told of a shape."""
    return PagedAttentionCase(
        num_tokens=shape.tokens,
        num_rows=shape.rows,
        num_query_heads=shape.kv_heads * shape.group,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        page_size=shape.page_size,
        pages_per_row=shape.pages_per_row,
        query_dtype=np.dtype(shape.dtype),
        kv_dtype=np.dtype(shape.kv_dtype or shape.dtype),
        options=options_of(shape),
        sinks=shape.sinks,
    )


def options_of(shape: Shape) -> AttentionOptions:
    """The usual scale, 1 / sqrt(head_dim), times 3 so that some keys stand out."""
    return AttentionOptions(3.0 * shape.head_dim**-0.5, shape.sliding_window, shape.soft_cap)


@functools.lru_cache
def _compiled(shape: Shape, target: DeviceTarget, backend: str) -> jax.stages.Wrapped:
    def op(*arguments: Any) -> Any:
        return attend(*arguments[:-1], sinks=arguments[-1])

    attend = functools.partial(
        paged_attention,
        options=options_of(shape),
        target=target,
        backend=backend,
    )
    return jax.jit(op, donate_argnums=(3, 4))


def _bits(pages: jax.Array | np.ndarray) -> np.ndarray:
    array = np.asarray(pages)
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize])
