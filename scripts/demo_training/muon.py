"""Muon (Jordan, 2024) with its products batched: matrices of one shape are orthogonalized together."""

from __future__ import annotations

import collections
from typing import Any

import jax
import jax.numpy as jnp
import optax

# Jordan's polynomial and number of rounds: singular values end between about 0.7 and 1.2.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5
_RMS = 0.2  # the size of an update's elements, about Adam's (Liu et al., 2025)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def orthogonalize(stack: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The nearest matrices with orthonormal rows, roughly, to each of (n, rows, columns), rows <= columns; float32.

    Args:
        stack: float32 matrices.
        dtype: of the products' factors; bfloat16 is what the method was made for.
    """
    x = stack / (jnp.linalg.norm(stack, axis=(1, 2), keepdims=True) + 1e-8)
    for _ in range(_ROUNDS):
        low = x.astype(dtype)
        square = jnp.einsum("nik,njk->nij", low, low, preferred_element_type=jnp.float32)
        low_square = square.astype(dtype)
        polynomial = _B * square + _C * _product(low_square, low_square)
        x = _A * x + _product(polynomial.astype(dtype), low)
    return x


def _orthogonalize_tree(updates: Any, dtype: jnp.dtype) -> Any:
    leaves, structure = jax.tree.flatten(updates)
    groups: dict[tuple[int, ...], list[int]] = collections.defaultdict(list)
    for index, leaf in enumerate(leaves):
        groups[tuple(sorted(leaf.shape))].append(index)
    for (_, columns), indices in groups.items():
        tall = {index: leaves[index].shape[0] > leaves[index].shape[1] for index in indices}
        stack = jnp.stack([leaves[index].T if tall[index] else leaves[index] for index in indices])
        # The barrier keeps the transposes out of the products: see kernels.
        flat = jax.lax.optimization_barrier(stack.reshape(-1))
        out = orthogonalize(flat.reshape(stack.shape), dtype) * (_RMS * columns**0.5)
        out = jax.lax.optimization_barrier(out.reshape(-1)).reshape(stack.shape)
        for place, index in enumerate(indices):
            leaves[index] = out[place].T if tall[index] else out[place]
    return jax.tree.unflatten(structure, leaves)


def scale_by_muon(dtype: jnp.dtype, momentum: float = 0.95) -> optax.GradientTransformation:
    """Nesterov momentum, then orthogonalization, scaled to elements of size 0.2. Every leaf must be a matrix."""

    def update(updates: Any, state: optax.EmptyState, params: Any = None) -> tuple[Any, optax.EmptyState]:
        del params
        return _orthogonalize_tree(updates, dtype), state

    rounds = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return optax.chain(optax.trace(momentum, nesterov=True), rounds)
