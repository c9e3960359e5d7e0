"""Batches that hypothesis chooses, through plain XLA, against the oracle: finds what the recipes forgot."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.dispatch import DeviceTarget
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Shape
from tests.pallas_kernels.paged_attention.contract import PagedAttentionContract

# Few, as each is compiled: hypothesis varies the rows, their lengths, and which pages are theirs.
SMALL = Shape(tokens=16, rows=5, pages_per_row=4, page_size=8, kv_heads=2, head_dim=16)
SHAPES = (
    SMALL,
    dataclasses.replace(SMALL, sliding_window=5, sinks=True),
    dataclasses.replace(SMALL, dtype=jnp.bfloat16, kv_dtype=jnp.int8, soft_cap=10.0),
)


@st.composite
def rows_of(draw: st.DrawFn, shape: Shape) -> cases.Rows:
    """Up to `shape.rows` rows of (query tokens, sequence length) that fit into a step and into their page tables."""
    rows, left = [], shape.tokens
    for _ in range(draw(st.integers(0, shape.rows))):
        count = draw(st.integers(0, min(left, shape.capacity)))
        rows.append((count, draw(st.integers(count, shape.capacity))))
        left -= count
    return rows


class OnCpu(PagedAttentionContract):
    target = DeviceTarget("cpu", "cpu")
    backend = "xla"


@pytest.mark.longer
@settings(max_examples=60, deadline=None)
@given(data=st.data(), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_any_rows(data: st.DataObject, shape: Shape, seed: int) -> None:
    rows = data.draw(rows_of(shape))
    contract = OnCpu()
    contract.check(cases.build(shape, contract.target, rows, np.random.default_rng(seed)), shape)


@pytest.mark.longer
@settings(max_examples=30, deadline=None)
@given(recipe=st.sampled_from(cases.RECIPES), shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**32 - 1))
def test_any_seed_of_the_recipes(recipe: cases.Recipe, shape: Shape, seed: int) -> None:
    rng = np.random.default_rng(seed)
    contract = OnCpu()
    contract.check(cases.build(shape, contract.target, recipe(shape, rng), rng), shape)
