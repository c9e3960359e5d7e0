"""A model of a published shape with random weights, made on the device: no checkpoint, no copy on the host."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxinfer.config import ModelConfig
from jaxinfer.plan import abstract_model
from jaxinfer.runtime.assemble import Model

_DEVIATION = 0.02  # the usual `initializer_range`


def random_model(name: str, config: ModelConfig, mesh: Mesh, *, dtype: str = "bfloat16", seed: int = 0) -> Model:
    """Matrices are normal with deviation 0.02, vectors (norms) are ones; each leaf lies where a loader would put it."""
    abstract = abstract_model(name, config, dtype, mesh)
    leaves, tree = jax.tree.flatten(abstract.params)
    key = jax.random.key(seed)
    made = [_make(jax.random.fold_in(key, index), leaf) for index, leaf in enumerate(leaves)]
    return dataclasses.replace(abstract, params=jax.tree.unflatten(tree, jax.block_until_ready(made)))


def _make(key: jax.Array, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    return _maker(leaf.shape, leaf.dtype, leaf.sharding)(key)


@functools.cache
def _maker(shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
    """One program for all leaves of a shape."""

    def make(key: jax.Array) -> jax.Array:
        if len(shape) == 1:
            return jnp.ones(shape, dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(_DEVIATION, dtype)

    return jax.jit(make, out_shardings=sharding)
