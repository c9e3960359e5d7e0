"""The oracle against sums small enough to do by hand, and against dense attention of whole sequences."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, reference
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Shape

CPU = DeviceTarget("cpu", "cpu")


def two_keys(score: float, **options) -> float:
    """One query with scores (0, `score`) against values (0, 1), head_dim 1: the weight of the second key."""
    batch = RaggedBatch(*(jnp.asarray(a, jnp.int32) for a in ([0, 1], [2], [[1]], [1 * 2 + 1])))
    pages = jnp.zeros((2, 1, 2, 1))
    one = jnp.ones((1, 1, 1))
    out, k_pages, v_pages = reference.paged_attention(
        one, one * score, one, pages, pages, batch, options=AttentionOptions(**options)
    )
    np.testing.assert_array_equal(k_pages.ravel(), np.float32([0, 0, 0, score]))
    np.testing.assert_array_equal(v_pages.ravel(), [0, 0, 0, 1])
    return float(out.item())


def test_softmax_by_hand():
    assert two_keys(np.log(3.0), scale=1.0) == pytest.approx(0.75, rel=1e-6)
    assert two_keys(np.log(3.0), scale=2.0) == pytest.approx(0.9, rel=1e-6)


def test_soft_cap_by_hand():
    assert two_keys(1e9, scale=1.0, soft_cap=np.log(4.0)) == pytest.approx(0.8, rel=1e-6)


def test_sliding_window_of_one_sees_itself_only():
    assert two_keys(-5.0, scale=1.0, sliding_window=1) == 1.0


@pytest.mark.parametrize("window", [None, 20])
def test_chunks_equal_dense_attention_of_the_whole_sequence(window):
    shape, rng = Shape(tokens=40, rows=1, pages_per_row=3, kv_heads=2, group=3, head_dim=8), np.random.default_rng(0)
    whole = cases.build(shape, CPU, [(40, 40)], rng)
    q, k, v = (np.asarray(a).astype(np.float64) for a in (whole.q, whole.k, whole.v))
    k, v = k.repeat(3, axis=1), v.repeat(3, axis=1)  # query head n uses kv head n // 3
    scores = np.einsum("qnh,knh->nqk", q, k) * 0.5
    gap = np.arange(40)[:, None] - np.arange(40)
    scores[:, (gap < 0) | (gap >= (window or 40))] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    dense = np.einsum("nqk,knh->qnh", weights / weights.sum(-1, keepdims=True), v)

    k_pages, v_pages, done = whole.k_pages, whole.v_pages, 0
    for count in (1, 15, 17, 7):
        chunk = slice(done, done + count)
        batch = RaggedBatch(
            query_start_loc=jnp.asarray([0, count], jnp.int32),
            seq_lens=jnp.asarray([done + count], jnp.int32),
            page_tables=whole.batch.page_tables,
            slot_mapping=whole.batch.slot_mapping[chunk],
        )
        arrays = (whole.q[chunk], whole.k[chunk], whole.v[chunk], k_pages, v_pages)
        out, k_pages, v_pages = reference.paged_attention(*arrays, batch, options=AttentionOptions(0.5, window))
        np.testing.assert_allclose(out, dense[chunk], atol=1e-6)
        done += count
