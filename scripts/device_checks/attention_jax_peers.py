"""Attention that comes with JAX: `dot_product_attention` through cuDNN and XLA, and Pallas' paged attention for GPUs.

The first two read dense keys and values, without pages. Pallas' reads pages, one query a row, with its defaults but for
blocks of 128 keys at every page size: its default of 8 pages does not fit into shared memory at 64 tokens a page. None
of them writes keys and values into a cache. Timed as ours (`jax_timing`); dense inputs are several arrays in turn, so
that none is found in the cache.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from device_checks.attention_cases import BFLOAT16, AttentionCase, attention_cases
from device_checks.child import Case
from device_checks.jax_timing import lower_loop, time_loop
from device_checks.settings import Settings

_NO_CHANGE = 1e-30
_DENSE_BYTES = 400_000_000  # of all arrays that are read in turn: several times the cache
_MOST_DENSE = 8
_BLOCK_KEYS = 128
_XLA_SCORES = 20_000_000_000  # bytes of float32 scores that the XLA implementation may write


def cases(settings: Settings, peer: str, part: str = "whole") -> Iterator[Case]:
    measure = {"pallas_gpu": pallas_paged, "jax_cudnn": dense_cudnn, "jax_xla": dense_xla}[peer]
    seen = set()
    for case in attention_cases(settings, part):
        # Without pages, one page size stands for all.
        known = case.rows if peer != "pallas_gpu" else (case.rows, case.page_size)
        if case.kv_dtype == BFLOAT16 and case.kind != "mixed" and known not in seen:
            seen.add(known)
            yield Case(case.name, functools.partial(_measured, case, measure))


def _measured(case: AttentionCase, measure: Callable[[AttentionCase], dict[str, Any]]) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fields = measure(case)
    return {"kind": case.kind, "needed_bytes": case.needed_bytes, "needed_flops": case.needed_flops, **fields}


def dense_cudnn(case: AttentionCase) -> dict[str, Any]:
    if (platform := jax.devices()[0].platform) != "gpu":
        raise NotImplementedError(f"cuDNN runs on NVIDIA GPUs only; this is a {platform}")
    return _dense(case, "cudnn")


def dense_xla(case: AttentionCase) -> dict[str, Any]:
    count, length = case.rows[0]
    if 4 * len(case.rows) * case.heads.query * count * length > _XLA_SCORES:
        raise NotImplementedError("its scores do not fit")
    return _dense(case, "xla")


def _dense(case: AttentionCase, implementation: str) -> dict[str, Any]:
    """(B, T, N, H) queries against (B, S, K, H) keys. The chunk is compared only where the last query sees all keys."""
    count, length = case.rows[0]
    if 1 < count < length:
        raise NotImplementedError("its causal mask begins at the first key: no chunk of a longer sequence")
    heads, batch = case.heads, len(case.rows)
    sets = max(2, min(_MOST_DENSE, -(-_DENSE_BYTES // case.needed_bytes)))
    q = _random(0, (batch, count, heads.query, heads.dim))
    keys = [_random(2 * i + 1, (batch, length, heads.kv, heads.dim)) for i in range(sets)]
    values = [_random(2 * i + 2, (batch, length, heads.kv, heads.dim)) for i in range(sets)]
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=count > 1, implementation=implementation)

    def turn(index: jax.Array, out: jax.Array, given: Any) -> jax.Array:
        del index
        q, keys, values = given
        for k, v in zip(keys, values, strict=True):
            out = attend(q + out[0, 0, 0, 0] * jnp.bfloat16(_NO_CHANGE), k, v)
        return out

    turns = max(1, case.launches // sets)
    operands = (q, keys, values)
    out = jnp.zeros_like(q)
    timing, out = time_loop(lower_loop(turn, out, operands, turns).compile(), out, operands, turns * sets)
    _check(out)
    return timing.fields()


def pallas_paged(case: AttentionCase) -> dict[str, Any]:
    from jax.experimental.pallas.ops.gpu.paged_attention import paged_attention

    if case.kind != "decode":
        raise NotImplementedError("one query a row only")
    heads, batch, length = case.heads, len(case.rows), case.rows[0][1]
    pages_per_row = length // case.page_size
    sets = max(1, min(16, case.pool_tokens // (batch * length)))
    count = sets * batch * pages_per_row
    tables = np.random.default_rng(0).permutation(count).reshape(sets, batch, pages_per_row).astype(np.int32)
    shape = (heads.kv, count, case.page_size, heads.dim)
    operands = {
        "q": _random(0, (batch, heads.query, heads.dim)),
        "k": _random(1, shape),
        "v": _random(2, shape),
        "tables": jnp.asarray(tables),
        "lengths": jnp.full((batch,), length, jnp.int32),
    }
    attend = functools.partial(
        paged_attention,
        k_splits=min(16, pages_per_row),
        pages_per_compute_block=max(1, _BLOCK_KEYS // case.page_size),
        interpret=jax.devices()[0].platform == "cpu",
    )

    def turn(index: jax.Array, out: jax.Array, given: dict[str, Any]) -> jax.Array:
        table = jax.lax.dynamic_index_in_dim(given["tables"], index % sets, keepdims=False)
        q = given["q"] + out[0, 0, 0] * jnp.bfloat16(_NO_CHANGE)
        return attend(q, given["k"], given["v"], table, given["lengths"])

    out = jnp.zeros_like(operands["q"])
    program = lower_loop(turn, out, operands, case.launches).compile()
    timing, out = time_loop(program, out, operands, case.launches)
    _check(out)
    return timing.fields()


def _random(seed: int, shape: tuple[int, ...]) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16)


def _check(out: jax.Array) -> None:
    if not bool(jnp.isfinite(out).all()):
        raise ValueError("the outputs are not finite")
