"""All products of activations with weights: one function, which is where quantized weights go their own way.

Weights are stored (outputs..., inputs...); a product contracts the last axes of both operands. It is accumulated and
returned in float32 (XLA:CPU is several times slower when asked for bfloat16), with full float32 multiplication when
the operands are float32, then rounded once to the activation's dtype.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.models.layer_choice import LayerChoice, Weight
from jaxinfer.models.parameters import parameter
from jaxinfer.sharding import LogicalAxes, constrain, split_of
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import quantized_matmul, quantized_matmul_of_choice

INITIAL_SCALE = 0.02  # standard deviation of fresh matrices, the usual `initializer_range`


def fresh(shape: tuple[int, ...], dtype: jnp.dtype, rngs: nnx.Rngs | None) -> jax.Array:
    """A matrix to start training from, or zeros to be overwritten when `rngs` is None."""
    if rngs is None:
        return jnp.zeros(shape, dtype)
    return (INITIAL_SCALE * jax.random.normal(rngs.params(), shape, jnp.float32)).astype(dtype)


class Multiply(Protocol):
    """What a step multiplies by weights with: `product`, or another function that keeps its contract."""

    def __call__(
        self,
        x: jax.Array,  # (T, *I)
        weight: Weight,  # (*O, *I)
        *,
        inputs: int = 1,
        merge: bool = True,
        axes: LogicalAxes | None = None,
    ) -> jax.Array:  # (T, *O) float32
        ...


def product(
    x: jax.Array,
    weight: Weight,
    *,
    inputs: int = 1,
    merge: bool = True,
    axes: LogicalAxes | None = None,
) -> jax.Array:
    """x (T, *I) times weight (*O, *I), contracted over the `inputs` axes I -> (T, *O) float32.

    `merge` makes both operands matrices first. XLA:CPU copies a weight of more axes transposed in every step, and its
    rows then depend on T. It must be False where a split axis of the weight is not the first of O or of I, because
    such axes cannot be merged without gathering the weight from all devices. `axes` are the weight's logical axes:
    kernels for quantized weights need them where there are several devices. Of a `LayerChoice` the program picks one
    product, so that no weight is copied.
    """
    tokens = x.shape[0]
    first = weight.options[0] if isinstance(weight, LayerChoice) else weight
    if isinstance(first, QTensor):  # its input axes are one
        x, split = x.reshape(tokens, -1), None if axes is None else split_of(axes[: len(first.shape)])
        if isinstance(weight, LayerChoice):
            return quantized_matmul_of_choice(x, weight.options, weight.index, merge=merge, split=split)  # type: ignore[arg-type]
        return quantized_matmul(x, first, merge=merge, split=split)
    if isinstance(weight, LayerChoice):
        bare = [partial(product, weight=option, inputs=inputs, merge=merge, axes=axes) for option in weight.options]
        return jax.lax.switch(weight.index, bare, x)
    weight = first
    outputs = weight.shape[: weight.ndim - inputs]
    if merge:
        weight = weight.reshape(math.prod(outputs), -1)
        x, inputs = x.reshape(tokens, -1), 1
    contract = (tuple(range(x.ndim - inputs, x.ndim)), tuple(range(weight.ndim - inputs, weight.ndim)))
    precision = jax.lax.Precision.HIGHEST if weight.dtype == jnp.float32 else None
    y = jax.lax.dot_general(x, weight, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)
    return y.reshape(tokens, *outputs)


def scale(x: jax.Array, multiplier: float) -> jax.Array:
    """x * multiplier with the product in float32: a Python number would first be rounded to a bfloat16 x's dtype."""
    return (x.astype(jnp.float32) * multiplier).astype(x.dtype)


class Linear(nnx.Module):
    """Weight (*outputs, *inputs) and optionally bias (*outputs); `axes` are the weight's logical axes; `merge` as in
    `product`; `keep`: it is never quantized."""

    def __init__(
        self,
        outputs: tuple[int, ...],
        inputs: tuple[int, ...],
        axes: LogicalAxes,
        dtype: jnp.dtype,
        *,
        bias: bool = False,
        merge: bool = True,
        keep: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        self.inputs = len(inputs)
        self.merge = merge
        self.axes = axes
        self.weight = parameter(fresh(outputs + inputs, dtype, rngs), axes, inputs=len(inputs), quantizable=not keep)
        self.bias = parameter(jnp.zeros(outputs, dtype), axes[: len(outputs)]) if bias else None

    def __call__(self, x: jax.Array, multiply: Multiply = product) -> jax.Array:
        """x (T, *inputs) -> (T, *outputs) in x's dtype."""
        return self.wide(x, multiply).astype(x.dtype)

    def wide(self, x: jax.Array, multiply: Multiply = product) -> jax.Array:
        """The same before it is rounded to x's dtype, float32."""
        weight: Weight = self.weight.get_value()
        y = multiply(x, weight, inputs=self.inputs, merge=self.merge, axes=self.axes)
        return y if self.bias is None else y + self.bias.get_value().astype(jnp.float32)


class Factored(nnx.Module):
    """A matrix of low rank as its two factors: `outer` (*outputs, rank) times `inner` (rank, *inputs).

    Two products; what is between them, `rank` numbers of a token, is rounded to x's dtype. Arguments as for `Linear`,
    `axes` those of the matrix.
    """

    def __init__(
        self,
        outputs: tuple[int, ...],
        inputs: tuple[int, ...],
        axes: LogicalAxes,
        dtype: jnp.dtype,
        *,
        rank: int,
        bias: bool = False,
        rngs: nnx.Rngs | None = None,
    ) -> None:
        cut = len(outputs)
        self.inner = Linear((rank,), inputs, ("rank", *axes[cut:]), dtype, rngs=rngs)
        self.outer = Linear(outputs, (rank,), (*axes[:cut], "rank"), dtype, bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array, multiply: Multiply = product) -> jax.Array:
        """x (T, *inputs) -> (T, *outputs) in x's dtype."""
        return self.outer(constrain(self.inner(x, multiply), "batch", "rank"), multiply)


def projection(
    outputs: tuple[int, ...],
    inputs: tuple[int, ...],
    axes: LogicalAxes,
    dtype: jnp.dtype,
    *,
    rank: int | None,
    bias: bool = False,
    rngs: nnx.Rngs | None = None,
) -> Linear | Factored:
    """A matrix (*outputs, *inputs), or its factors where it has a rank."""
    if rank is None:
        return Linear(outputs, inputs, axes, dtype, bias=bias, rngs=rngs)
    return Factored(outputs, inputs, axes, dtype, rank=rank, bias=bias, rngs=rngs)
