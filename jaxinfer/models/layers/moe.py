"""A mixture of experts: a router chooses for each token the MLPs whose weighted sum is its result.

Shapes: T tokens, D model, E experts, k experts of a token, R = T k rows, F' padded width of an expert.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec

from jaxinfer.config import MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.layer_choice import LayerChoice, Weight
from jaxinfer.models.layers.linear import Linear, Multiply, fresh, product
from jaxinfer.models.layers.mlp import Gate, Mlp, gated
from jaxinfer.models.parameters import parameter
from jaxinfer.models.shape import ModelShape
from jaxinfer.sharding import EXPERT_AXIS, MODEL_AXES, TENSOR_AXIS, LogicalAxes, constrain, partition_spec
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul import grouped_matmul, grouped_matmul_of_choice
from pallas_kernels.qtensor import QTensor

_TINY = 1e-20  # beside a sum of scores that could be 0, as published routers have it


class MultiplyExperts(Protocol):
    """What rows are multiplied by their experts with: `expert_product`, or another function that keeps its contract."""

    def __call__(
        self,
        x: jax.Array,  # (R, I), sorted by expert
        weight: Weight,  # (E, *O, I)
        group_sizes: jax.Array,  # (E,) int32, rows of each expert; rows behind their sum are padding
    ) -> jax.Array:  # (R, *O) float32, zeros in padding
        ...


def expert_product(target: DeviceTarget) -> MultiplyExperts:
    """A `MultiplyExperts` for the kind of device that is compiled for."""

    def multiply(x: jax.Array, weight: Weight, group_sizes: jax.Array) -> jax.Array:
        if isinstance(weight, LayerChoice):
            return grouped_matmul_of_choice(x, weight.options, weight.index, group_sizes, target=target)
        return grouped_matmul(x, weight, group_sizes, target=target)

    return multiply


def route(router: RouterConfig, products: jax.Array, correction: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """What each token's experts are, and their weights: (T, k) int32 and float32, the best first.

    Of equal scores the lower expert counts as better.

    Args:
        products: (T, E) float32, the router's product.
        correction: (E,) float32, see `RouterConfig`.
    """
    k = router.experts_per_token
    if not router.scored_first:
        best, chosen = jax.lax.top_k(products, k)
        weights = _scores(router, best)
    else:
        scores = _scores(router, products)
        ranked = scores if correction is None else scores + correction
        _, chosen = jax.lax.top_k(_of_best_groups(router, ranked), k)
        weights = jnp.take_along_axis(scores, chosen, axis=1)
    if router.normalize:
        weights = weights / (jnp.sum(weights, axis=1, keepdims=True) + _TINY)
    return chosen.astype(jnp.int32), weights * router.scale if router.scale != 1.0 else weights


def _scores(router: RouterConfig, products: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(products) if router.scoring == "sigmoid" else jax.nn.softmax(products, axis=1)


def _of_best_groups(router: RouterConfig, ranked: jax.Array) -> jax.Array:
    """(T, E), -inf in all groups but the best."""
    if router.groups == router.groups_kept:
        return ranked
    tokens, experts = ranked.shape
    grouped = ranked.reshape(tokens, router.groups, -1)
    of_groups = jnp.sum(jax.lax.top_k(grouped, 2)[0], axis=2)  # (T, groups)
    _, kept = jax.lax.top_k(of_groups, router.groups_kept)
    inside = jnp.any(kept[:, :, None] == jnp.arange(router.groups), axis=1)  # (T, groups)
    return jnp.where(inside[:, :, None], grouped, -jnp.inf).reshape(tokens, experts)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """Parameters of all experts, or of one device's share of them, as a pytree."""

    gate_up: Weight  # (E, 2, F', D)
    down: Weight  # (E, D, F')
    gate_up_bias: jax.Array | None  # (E, 2, F')
    down_bias: jax.Array | None  # (E, D)


jax.tree_util.register_dataclass(
    _Weights, data_fields=[field.name for field in dataclasses.fields(_Weights)], meta_fields=[]
)


class Experts(nnx.Module):
    """One stacked weight and, where the config says so, bias: (E, *outputs, *inputs) and (E, *outputs)."""

    def __init__(
        self, shape: tuple[int, ...], axes: LogicalAxes, dtype: jnp.dtype, *, bias: bool, rngs: nnx.Rngs | None
    ) -> None:
        self.axes = axes
        self.weight = parameter(fresh(shape, dtype, rngs), axes, inputs=1)
        self.bias = parameter(jnp.zeros(shape[:-1], dtype), axes[:-1]) if bias else None


class Moe(nnx.Module):
    """The router, all experts' weights stacked, and the shared experts as one MLP."""

    def __init__(
        self, config: ModelConfig, shape: ModelShape, layer: int, dtype: jnp.dtype, rngs: nnx.Rngs | None
    ) -> None:
        moe, sizes, model = config.layers[layer].feed_forward, shape.layers[layer], config.hidden_size
        assert isinstance(moe, MoeConfig)
        self.moe = moe
        count, bias = moe.num_experts, moe.expert.bias
        self.router = Linear((count,), (model,), (None, "embed"), dtype, bias=moe.router.bias, keep=True, rngs=rngs)
        self.correction = parameter(jnp.zeros((count,), jnp.float32), (None,)) if moe.router.correction else None
        self.gate_up = Experts(
            (count, 2, sizes.mlp, model), ("experts", "gate_up", "expert_mlp", "embed"), dtype, bias=bias, rngs=rngs
        )
        self.down = Experts((count, model, sizes.mlp), ("experts", "embed", "expert_mlp"), dtype, bias=bias, rngs=rngs)
        if moe.shared is not None:
            self.shared = Mlp(moe.shared, model, sizes.shared, shape.tp, dtype, rngs)
        if moe.shared_gate:
            self.shared_gate = Linear((1,), (model,), (None, "embed"), dtype, keep=True, rngs=rngs)

    def __call__(
        self,
        x: jax.Array,
        valid: jax.Array | None,
        multiply: Multiply = product,
        multiply_experts: MultiplyExperts | None = None,
        gate: Gate = gated,
    ) -> tuple[jax.Array, jax.Array]:
        """(T, D) -> (T, D), and how many tokens each expert had: (E,) int32.

        valid: (T,) bool, tokens that are real; others go to no expert; None: all are real.
        """
        run = expert_product(DeviceTarget("cpu", "cpu")) if multiply_experts is None else multiply_experts
        products = self.router.wide(x, multiply)  # (T, E) float32
        correction = None if self.correction is None else self.correction.get_value()
        chosen, weights = route(self.moe.router, products, correction)
        if valid is not None:
            chosen = jnp.where(valid[:, None], chosen, self.moe.num_experts)
        tokens = _tokens_of_each(chosen, self.moe.num_experts)
        y = constrain(self._mix(x, chosen, weights, tokens, run, gate), "batch", "embed")
        if self.moe.shared is not None:
            shared = self.shared(x, multiply, gate).astype(jnp.float32)
            if self.moe.shared_gate:
                shared = shared * jax.nn.sigmoid(self.shared_gate.wide(x, multiply))
            y = y + shared
        return y.astype(x.dtype), tokens

    def _mix(
        self,
        x: jax.Array,
        chosen: jax.Array,
        weights: jax.Array,
        tokens: jax.Array,
        run: MultiplyExperts,
        gate: Gate,
    ) -> jax.Array:
        """The weighted sum of the chosen experts' results: (T, D) float32. tokens: (E,) int32, of each expert."""

        def value(bias: nnx.Param | None) -> jax.Array | None:
            return None if bias is None else bias.get_value()

        experts = _Weights(
            self.gate_up.weight.get_value(),
            self.down.weight.get_value(),
            value(self.gate_up.bias),
            value(self.down.bias),
        )
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return _mixed(self.moe.expert, x, chosen, weights, tokens, experts, run, gate)

        # Every device has every token, since attention is split by heads, and computes those of its own experts: one
        # all-reduce of the results is sent. docs/architecture.md (Experts on several devices) counts what it would cost
        # to send tokens to their experts instead.
        def share(
            x: jax.Array, chosen: jax.Array, weights: jax.Array, tokens: jax.Array, experts: _Weights
        ) -> jax.Array:
            """One device's experts, and its part of their width."""
            count = self.moe.num_experts // mesh.shape[EXPERT_AXIS]
            first_here = jax.lax.axis_index(EXPERT_AXIS) * count
            here = chosen - first_here
            here = jnp.where((here >= 0) & (here < count), here, count)
            sizes = jax.lax.dynamic_slice_in_dim(tokens, first_here, count)
            if experts.down_bias is not None:  # added once, not by every part of the width
                first = jax.lax.axis_index(TENSOR_AXIS) == 0
                experts = dataclasses.replace(experts, down_bias=jnp.where(first, experts.down_bias, 0))
            y = _mixed(self.moe.expert, x, here, weights, sizes, experts, run, gate)
            return jax.lax.psum(y, MODEL_AXES)

        # Kernels' loops start from constants, which check_vma would refuse to carry.
        whole = PartitionSpec()
        specs = (whole, whole, whole, whole, self._specs(experts))
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=whole, check_vma=False)(
            x, chosen, weights, tokens, experts
        )

    def _specs(self, experts: _Weights) -> _Weights:
        """Where the experts' parts lie on the mesh."""

        def of_weight(weight: Weight, axes: LogicalAxes) -> object:
            spec = partition_spec(axes)
            if not isinstance(weight, QTensor):
                return spec
            values, scales = (PartitionSpec(*part) for part in weight.axes_of_parts(tuple(spec)))
            zeros = None if weight.zeros is None else scales
            return dataclasses.replace(weight, values=values, scales=scales, zeros=zeros)  # type: ignore[arg-type]

        def of_bias(bias: jax.Array | None, axes: LogicalAxes) -> object:
            return None if bias is None else partition_spec(axes[:-1])

        return _Weights(
            of_weight(experts.gate_up, self.gate_up.axes),  # type: ignore[arg-type]
            of_weight(experts.down, self.down.axes),  # type: ignore[arg-type]
            of_bias(experts.gate_up_bias, self.gate_up.axes),  # type: ignore[arg-type]
            of_bias(experts.down_bias, self.down.axes),  # type: ignore[arg-type]
        )


def _tokens_of_each(chosen: jax.Array, count: int) -> jax.Array:
    """How many tokens have chosen each of `count` experts, (count,) int32. chosen: (T, k) int32; `count`: none."""
    return jnp.sum(chosen.reshape(-1)[:, None] == jnp.arange(count), axis=0, dtype=jnp.int32)


def _mixed(
    expert: MlpConfig,
    x: jax.Array,
    chosen: jax.Array,
    weights: jax.Array,
    sizes: jax.Array,
    experts: _Weights,
    multiply: MultiplyExperts,
    gate: Gate,
) -> jax.Array:
    """The weighted sum of what the chosen experts make of each token: (T, D) float32.

    expert: what each of the experts here is.
    chosen: (T, k) int32, each token's experts; their number stands for one that is not here and adds nothing.
    weights: (T, k) float32. Sums are made in the order of a token's experts, whoever stands beside it.
    sizes: int32, tokens of each expert here.
    """
    tokens, k = chosen.shape
    count = sizes.shape[0]
    flat = chosen.reshape(-1)
    order = jnp.argsort(flat)  # stable
    rows = x[order // k]  # (R, D)
    expert_of_row = flat[order]
    hidden = multiply(rows, experts.gate_up, sizes)  # (R, 2, F')
    if experts.gate_up_bias is not None:
        hidden = hidden + _of_rows(experts.gate_up_bias, expert_of_row)
    hidden = gate(hidden.astype(x.dtype), expert.activation, expert.limit, jnp.sum(sizes))
    y = multiply(hidden, experts.down, sizes)  # (R, D)
    if experts.down_bias is not None:
        y = y + _of_rows(experts.down_bias, expert_of_row)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))  # where each token's rows have gone
    parts = y[back].reshape(tokens, k, -1)
    total = jnp.zeros((tokens, y.shape[1]), jnp.float32)
    for place in range(k):
        here = (chosen[:, place] < count)[:, None]
        total = total + jnp.where(here, parts[:, place] * weights[:, place, None], 0.0)
    return total


def _of_rows(bias: jax.Array, expert: jax.Array) -> jax.Array:
    return bias.at[expert].get(mode="clip").astype(jnp.float32)
