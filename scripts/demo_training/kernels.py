"""The training step's products, attention and loss, with gradients written by hand for the CPU.

XLA's CPU backend reaches its fast matrix product only when neither large operand has to be transposed first, and it
multiplies bfloat16 at twice the rate of float32. The derivatives that JAX would form transpose the large operand of
`x.T @ dy`; these transpose the smaller one. All sums are float32, whatever the type of the factors.

Shape legend: B sequences, T tokens, D hidden, K key/value heads, G query heads per key head, H head_dim, V vocabulary.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_QUERY_BLOCK = 128
_MASKED = -1e30


def _pinned(x: jax.Array) -> jax.Array:
    """x, row-major in memory.

    The flat array between two reshapes keeps XLA from folding a transpose into a product. It has no bfloat16 kernel
    for transposed factors: it would widen both to float32 and take twice as long, or fail.
    """
    return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def _transposed(x: jax.Array) -> jax.Array:
    """The last two axes swapped in memory."""
    return _pinned(jnp.swapaxes(x, -1, -2))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """(..., m, k) times (..., k, n), float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _dot_nt(a: jax.Array, b: jax.Array) -> jax.Array:
    """(..., m, k) times (..., n, k) transposed, float32."""
    return jnp.einsum("...mk,...nk->...mn", a, b, preferred_element_type=jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def project(x: jax.Array, matrix: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """x (rows, in) float32 times matrix (in, out) float32, both rounded to dtype first; float32."""
    return _dot(x.astype(dtype), matrix.astype(dtype))


def _project_forward(x: jax.Array, matrix: jax.Array, dtype: jnp.dtype) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    x, matrix = x.astype(dtype), matrix.astype(dtype)
    return _dot(x, matrix), (x, matrix)


def _project_backward(dtype: jnp.dtype, saved: tuple[jax.Array, ...], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, matrix = saved
    dy = dy.astype(dtype)
    by_input = matrix.shape[0] <= matrix.shape[1]
    d_matrix = _dot(_transposed(x), dy) if by_input else _pinned(_dot(_transposed(dy), x)).T
    return _dot_nt(dy, matrix), d_matrix


project.defvjp(_project_forward, _project_backward)


def _query_blocks(length: int) -> list[tuple[int, int]]:
    return [(start, min(start + _QUERY_BLOCK, length)) for start in range(0, length, _QUERY_BLOCK)]


def _rows(x: jax.Array, start: int, end: int) -> jax.Array:
    """Tokens start to end of x (BK, G, T, ...) as the rows (BK, G * t, ...) of one product."""
    block = x[:, :, start:end]
    return block.reshape(block.shape[0], -1, *block.shape[3:])


def _scores(q: jax.Array, k: jax.Array, group: int) -> jax.Array:
    """Masked scores (BK, G * t, s) of the last t of s positions."""
    scores = _dot_nt(q, k)
    queries, keys = scores.shape[1] // group, scores.shape[2]
    causal = jnp.tril(jnp.ones((queries, keys), jnp.bool_), k=keys - queries)
    return jnp.where(jnp.tile(causal, (group, 1)), scores, _MASKED)


def _add_front(total: jax.Array, part: jax.Array) -> jax.Array:
    """Adds part to the front of the last axis. A slice and its update: `.at[].add` would be a slow scatter."""
    front = total[..., : part.shape[-1]] + part
    return jax.lax.dynamic_update_slice(total, front, (0,) * total.ndim)


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal attention, (BK, G, T, H) float32, of scaled queries (BK, G, T, H) over keys and values (BK, T, H).

    The weights of a block of queries are made again for the gradient from the logarithm of their sum, as in Dao et
    al., 2022; later keys are never looked at, which is half of the products.
    """
    return _attend_forward(q, k, v)[0]


def _attend_forward(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    batch, group, length, size = q.shape
    mixed, logs = [], []
    for start, end in _query_blocks(length):
        scores = _scores(_rows(q, start, end), k[:, :end], group)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        block = _dot(weights.astype(v.dtype), v[:, :end]) / total
        mixed.append(block.reshape(batch, group, end - start, size))
        logs.append((top + jnp.log(total)).reshape(batch, group, end - start))
    out, log = jnp.concatenate(mixed, axis=2), jnp.concatenate(logs, axis=2)
    return out, (q, k, v, out, log)


def _attend_backward(saved: tuple[jax.Array, ...], d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    q, k, v, out, log = saved
    batch, group, length, size = q.shape
    inner = jnp.sum(d_out * out, axis=-1)
    d_out = d_out.astype(v.dtype)
    # The gradients of keys and values come out transposed, (BK, H, T): only the thin factor is then transposed.
    dk, dv = (jnp.zeros((batch, size, length), jnp.float32) for _ in range(2))
    dq = []
    for start, end in _query_blocks(length):
        rows, d_rows = _rows(q, start, end), _rows(d_out, start, end)
        keys, values = k[:, :end], v[:, :end]
        weights = jnp.exp(_scores(rows, keys, group) - _rows(log, start, end)[..., None])
        d_scores = weights * (_dot_nt(d_rows, values) - _rows(inner, start, end)[..., None])
        weights, d_scores = weights.astype(v.dtype), d_scores.astype(v.dtype)
        dq.append(_dot(d_scores, keys).reshape(batch, group, end - start, size))
        dk = _add_front(dk, _dot(_transposed(rows), d_scores))
        dv = _add_front(dv, _dot(_transposed(d_rows), weights))
    dk, dv = (jnp.swapaxes(_pinned(gradient), 1, 2).astype(q.dtype) for gradient in (dk, dv))
    return jnp.concatenate(dq, axis=2).astype(q.dtype), dk, dv


attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    states: jax.Array, table: jax.Array, targets: jax.Array, learned: jax.Array, chunk: int, dtype: jnp.dtype
) -> jax.Array:
    """Sum of the cross entropies in nats of the marked rows.

    The marked rows are brought together, and logits are computed for `chunk` of them at a time, once: their gradient is
    formed with them. Chunks without a marked row are skipped.

    Args:
        states: (rows, D) float32.
        table: the output matrix, (V, D) float32.
        targets: (rows,) int32.
        learned: (rows,) bool.
        chunk: divides rows.
        dtype: of the products' factors.
    """
    return _cross_entropy_forward(states, table, targets, learned, chunk, dtype)[0]


def _cross_entropy_forward(
    states: jax.Array, table: jax.Array, targets: jax.Array, learned: jax.Array, chunk: int, dtype: jnp.dtype
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows, count = states.shape[0], jnp.sum(learned)
    order = jnp.argsort(~learned, stable=True)  # marked rows first
    places = jnp.argsort(order)
    near, factors = states.astype(dtype)[order], table.astype(dtype)
    targets = targets[order]

    def one_chunk(index: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        loss, d_near, d_table = sums
        first = index * chunk
        x = jax.lax.dynamic_slice_in_dim(near, first, chunk)
        marked = (first + jnp.arange(chunk) < count)[:, None]
        target = jax.lax.dynamic_slice_in_dim(targets, first, chunk)[:, None]
        logits = _dot_nt(x, factors)  # (chunk, V)
        top = jnp.max(logits, axis=-1, keepdims=True)
        log = top + jnp.log(jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True))
        losses = log - jnp.take_along_axis(logits, target, axis=-1)
        hit = jnp.arange(logits.shape[1]) == target
        d_logits = jnp.where(marked, jnp.exp(logits - log) - hit, 0.0).astype(dtype)
        d_near = jax.lax.dynamic_update_slice_in_dim(d_near, _dot(d_logits, factors), first, 0)
        d_table = d_table + _dot(_transposed(x), d_logits)  # (D, V)
        return loss + jnp.sum(jnp.where(marked, losses, 0.0)), d_near, d_table

    sums = (jnp.zeros((), jnp.float32), jnp.zeros(states.shape, jnp.float32), jnp.zeros(table.T.shape, jnp.float32))
    chunks = jnp.minimum(-(-count // chunk), rows // chunk)
    loss, d_near, d_table = jax.lax.fori_loop(0, chunks, one_chunk, sums)
    return loss, (d_near[places], _pinned(d_table).T)


def _cross_entropy_backward(
    chunk: int, dtype: jnp.dtype, saved: tuple[jax.Array, jax.Array], d_loss: jax.Array
) -> tuple[jax.Array | None, ...]:
    del chunk, dtype
    d_states, d_table = saved
    return d_loss * d_states, d_loss * d_table, None, None


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
