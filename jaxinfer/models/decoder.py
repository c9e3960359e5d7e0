"""The one decoder of all families: a Flax NNX module driven by `ModelConfig`.

Shapes: T tokens (of any sequences, in any order), D model, N query heads, K' KV heads, H head_dim, R rows, V' padded
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import LinearConfig, ModelConfig, MoeConfig, require
from jaxinfer.models.context import Attend, KvLayer, Place, StepContext
from jaxinfer.models.layer_loop import add_tokens, run_layers
from jaxinfer.models.layers.attention import Attention
from jaxinfer.models.layers.embedding import VocabularyMatrix
from jaxinfer.models.layers.linear import Multiply, product, scale
from jaxinfer.models.layers.mlp import Mlp
from jaxinfer.models.layers.moe import Moe
from jaxinfer.models.layers.norm import RMSNorm
from jaxinfer.models.layers.straight import Straight
from jaxinfer.models.shape import ModelShape
from jaxinfer.sharding import constrain


class DecoderLayer(nnx.Module):
    """Attention, then MLP or a mixture of experts; each with a norm before it, after it, or both, and added to the
    residual stream. Either may be one matrix instead, or absent with its norms."""

    def __init__(
        self, config: ModelConfig, shape: ModelShape, layer: int, dtype: jnp.dtype, rngs: nnx.Rngs | None
    ) -> None:
        self.pre_norm = config.pre_norm
        self.post_norm = config.post_norm
        self.residual_multiplier = config.residual_multiplier
        self.mixer, self.feed_forward = config.layers[layer].mixer, config.layers[layer].feed_forward
        ranks, sizes = config.layers[layer].ranks, shape.layers[layer]
        model = (config.hidden_size,)
        if self.mixer is not None:
            if isinstance(self.mixer, LinearConfig):
                self.attention: Attention | Straight = Straight(config, self.mixer, dtype, rngs)
            else:
                self.attention = Attention(config, shape, layer, dtype, rngs)
            if config.pre_norm:
                self.attention_norm = RMSNorm(config, model, ("embed",), dtype)
            if config.post_norm:
                self.attention_post_norm = RMSNorm(config, model, ("embed",), dtype)
        if self.feed_forward is not None:
            if isinstance(self.feed_forward, LinearConfig):
                self.mlp: Mlp | Straight = Straight(config, self.feed_forward, dtype, rngs)
            elif isinstance(self.feed_forward, MoeConfig):
                self.moe = Moe(config, shape, layer, dtype, rngs)
            else:
                size = config.hidden_size
                self.mlp = Mlp(self.feed_forward, size, sizes.mlp, shape.tp, dtype, rngs, ranks=ranks)
            if config.pre_norm:
                self.mlp_norm = RMSNorm(config, model, ("embed",), dtype)
            if config.post_norm:
                self.mlp_post_norm = RMSNorm(config, model, ("embed",), dtype)

    def __call__(
        self, hidden: jax.Array, context: StepContext, attend: Attend | None, kv_layer: KvLayer
    ) -> tuple[jax.Array, KvLayer, jax.Array | None]:
        """hidden (T, D) -> (T, D); the layer's KV, which `attend` writes and reads; and how many tokens each of its
        experts had, (E,) int32, None in a layer without experts. attend is None where there is no attention, which
        leaves `kv_layer` as it is."""
        normalize, tokens = context.normalize, None
        if self.mixer is not None:
            x = self.attention_norm(hidden, normalize) if self.pre_norm else hidden
            if isinstance(self.attention, Attention):
                assert attend is not None
                x, kv_layer = self.attention(x, context, attend, kv_layer)
            else:
                x = self.attention(x, context.multiply)
            hidden = self._add(hidden, self.attention_post_norm(x, normalize) if self.post_norm else x)
        if self.feed_forward is not None:
            x = self.mlp_norm(hidden, normalize) if self.pre_norm else hidden
            x, tokens = self._feed_forward(x, context)
            hidden = self._add(hidden, self.mlp_post_norm(x, normalize) if self.post_norm else x)
        return hidden, kv_layer, tokens

    def _feed_forward(self, x: jax.Array, context: StepContext) -> tuple[jax.Array, jax.Array | None]:
        if isinstance(self.feed_forward, MoeConfig):
            return self.moe(x, context.valid, context.multiply, context.multiply_experts, context.gate)
        if isinstance(self.mlp, Straight):
            return self.mlp(x, context.multiply), None
        return self.mlp(x, context.multiply, context.gate), None

    def _add(self, hidden: jax.Array, x: jax.Array) -> jax.Array:
        if self.residual_multiplier != 1.0:
            x = scale(x, self.residual_multiplier)
        return constrain(hidden + x, "batch", "embed")


class Decoder(nnx.Module):
    """Token ids to logits, in two halves so that logits are computed for the rows that need them only.

    Parameters are zeros (norms: identity) unless `rngs` is given, which starts a model for training and therefore
    wants an unpadded shape (tp = 1). To load weights use `abstract_decoder`, which allocates nothing.
    """

    def __init__(self, config: ModelConfig, shape: ModelShape, dtype: jnp.dtype, rngs: nnx.Rngs | None = None) -> None:
        require(rngs is None or shape.tp == 1, f"random parameters are made for tp = 1 only, not for {shape.tp}")
        self.config = config
        places = config.cache_groups.places()
        # Page table and array of the cache that each layer uses; None: it keeps nothing.
        self.places = tuple(places.get(layer) for layer in range(config.num_layers))
        counted = [layer for layer, _ in config.expert_layers]
        # Row of each layer in the counts of its experts' tokens; None: it has no experts.
        self.count_rows = tuple(counted.index(i) if i in counted else None for i in range(config.num_layers))
        self.embed = VocabularyMatrix(config, shape.vocab, "vocab_in", dtype, rngs)
        self.layers = nnx.List([DecoderLayer(config, shape, layer, dtype, rngs) for layer in range(config.num_layers)])
        self.final_norm = RMSNorm(config, (config.hidden_size,), ("embed",), dtype)
        self.lm_head = (
            None if config.tie_word_embeddings else VocabularyMatrix(config, shape.vocab, "vocab_out", dtype, rngs)
        )

    def hidden_states(
        self, token_ids: jax.Array, context: StepContext, cache: Sequence[KvLayer]
    ) -> tuple[jax.Array, list[KvLayer]]:
        """`counted_states` where nobody counts what experts do."""
        hidden, pages, _ = self.counted_states(token_ids, context, cache, None)
        return hidden, pages

    def counted_states(
        self, token_ids: jax.Array, context: StepContext, cache: Sequence[KvLayer], expert_tokens: jax.Array | None
    ) -> tuple[jax.Array, list[KvLayer], jax.Array | None]:
        """Hidden states after the final norm, (T, D), the cache with this step's tokens written, and `expert_tokens`
        with this step's added.

        token_ids: (T,) int32. cache: K and V pages of each of the `depth` pool arrays of `ModelConfig.cache_groups`,
        which layers of several page tables share; where `context.looped`, one pair that has them all, one behind the
        other: depth * P pages, those of array i from page i * P on. A token's result does not depend on the other
        tokens except through `context.attention`, bit for bit, as long as T is at least 8 (XLA:CPU reduces smaller
        arrays differently).

        expert_tokens: (layers with experts, most experts of a layer) integers, how many tokens each expert has had, a
        row for each of `ModelConfig.expert_layers`; None: nothing is counted.

        Raises ValueError if the cache has another number of arrays, or of pages that all of them cannot have.
        """
        depth = self.config.cache_groups.depth
        if len(cache) != (1 if context.looped else depth):
            wanted = "with looped layers it must be one" if context.looped else f"the layers use {depth}"
            raise ValueError(f"the cache has {len(cache)} arrays; {wanted}")
        hidden, pages = self.embed.embed(token_ids), list(cache)
        if context.looped:
            carry = hidden, pages[0], expert_tokens
            hidden, pages[0], expert_tokens = run_layers(self.layers, self.places, self.count_rows, context, carry)
        else:
            for layer, place, row in zip(self.layers, self.places, self.count_rows, strict=True):
                table, array = (None, 0) if place is None else place
                attend = None if table is None else context.attention(Place(table))
                hidden, pages[array], tokens = layer(hidden, context, attend, pages[array])
                expert_tokens = add_tokens(expert_tokens, row, tokens)
        return self.final_norm(hidden, context.normalize), pages, expert_tokens

    def logits(self, hidden: jax.Array, multiply: Multiply = product) -> jax.Array:
        """hidden (R, D) after the final norm -> (R, V') float32; entries of padded vocabulary are -inf."""
        return (self.embed if self.lm_head is None else self.lm_head).logits(hidden, multiply)


def abstract_decoder(config: ModelConfig, shape: ModelShape, dtype: jnp.dtype) -> tuple[nnx.GraphDef, nnx.State]:
    """(graphdef, abstract state) of a decoder: shapes, dtypes and logical axes, but no arrays.

    Leaves hold `jax.ShapeDtypeStruct`; `parameters.facts_of(leaf)` gives what each says of itself. The order of
    `nnx.to_flat_state` and of the flattened leaves is fixed by the tree, so a step may take a tuple of leaves.
    """
    # Under a mesh NNX would read the logical axes as mesh axes; they are translated by `jaxinfer.sharding` instead.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ())):
        module = nnx.eval_shape(lambda: Decoder(config, shape, jnp.dtype(dtype)))
        return nnx.split(module)
