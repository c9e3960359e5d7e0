"""A model of a published shape with random weights, made on the device: no checkpoint, no copy on the host."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxinfer.config import ModelConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.models.model import Model
from pallas_kernels.qtensor import QTensor

# Deviation of the numbers that are drawn, before their scale.
_SPREAD = {"int8": 73.5, "int4": 4.5, "fp8": 1.0, "mxfp4": 2.9}
_DEVIATION = 0.02  # the usual `initializer_range`


def random_model(
    name: str,
    config: ModelConfig,
    mesh: Mesh,
    *,
    dtype: str = "bfloat16",
    quantization: str | None = None,
    seed: int = 0,
) -> Model:
    """Matrices are normal with deviation 0.02, vectors (norms) are ones; each leaf lies where a loader would put it.

    With `quantization` the layers' matrices are random quantized numbers, of about that deviation.
    """
    abstract = abstract_model(name, config, dtype, mesh, quantization)
    leaves, tree = jax.tree.flatten(abstract.params, is_leaf=lambda x: isinstance(x, QTensor))
    key = jax.random.key(seed)
    made = [_make(jax.random.fold_in(key, index), leaf) for index, leaf in enumerate(leaves)]
    return dataclasses.replace(abstract, params=jax.tree.unflatten(tree, jax.block_until_ready(made)))


def _make(key: jax.Array, leaf: jax.ShapeDtypeStruct | QTensor) -> jax.Array | QTensor:
    if not isinstance(leaf, QTensor):
        return _maker(leaf.shape, leaf.dtype, leaf.sharding)(key)
    scale = _DEVIATION / _SPREAD[leaf.kind]
    if leaf.kind == "mxfp4":  # the exponent of the nearest power of two
        scale = 127 + round(math.log2(scale))
    scales = _filler(leaf.scales.shape, scale, leaf.scales.dtype, leaf.scales.sharding)()
    numbers = _number_maker(leaf.values.shape, leaf.values.dtype, leaf.values.sharding)(key)
    return dataclasses.replace(leaf, values=numbers, scales=scales)


@functools.cache
def _maker(shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
    """One program for all leaves of a shape."""

    def make(key: jax.Array) -> jax.Array:
        if len(shape) == 1:
            return jnp.ones(shape, dtype)
        return jax.random.normal(key, shape, dtype) * jnp.asarray(_DEVIATION, dtype)

    return jax.jit(make, out_shardings=sharding)


@functools.cache
def _number_maker(shape: tuple[int, ...], dtype: jnp.dtype, sharding: jax.sharding.Sharding) -> jax.stages.Wrapped:
    def make(key: jax.Array) -> jax.Array:
        if dtype == jnp.uint8:  # pairs of int4 or mxfp4
            return jax.random.bits(key, shape, jnp.uint8)
        if dtype == jnp.int32:  # eight of them
            return jax.lax.bitcast_convert_type(jax.random.bits(key, shape, jnp.uint32), jnp.int32)
        if dtype == jnp.int4 or dtype == jnp.int8:
            largest = 7 if dtype == jnp.int4 else 127
            return jax.random.randint(key, shape, -largest, largest + 1, jnp.int8).astype(dtype)
        return jax.random.normal(key, shape, jnp.bfloat16).astype(dtype)

    return jax.jit(make, out_shardings=sharding)


@functools.cache
def _filler(
    shape: tuple[int, ...], value: float, dtype: jnp.dtype, sharding: jax.sharding.Sharding
) -> jax.stages.Wrapped:
    return jax.jit(lambda: jnp.full(shape, value, dtype), out_shardings=sharding)
