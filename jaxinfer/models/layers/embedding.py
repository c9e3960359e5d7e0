"""The vocabulary matrix: token ids to vectors, and vectors to logits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.config import ModelConfig
from jaxinfer.models.layers.linear import Multiply, fresh, product, scale
from jaxinfer.models.parameters import parameter
from jaxinfer.sharding import constrain


class VocabularyMatrix(nnx.Module):
    """weight (V', D), split over the vocabulary; rows from `vocab_size` on are padding and zero.

    axis: the vocabulary's logical axis, "vocab_in" where the matrix embeds.
    """

    def __init__(self, config: ModelConfig, vocab: int, axis: str, dtype: jnp.dtype, rngs: nnx.Rngs | None) -> None:
        self.config = config
        self.weight = parameter(fresh((vocab, config.hidden_size), dtype, rngs), (axis, "embed"))

    def embed(self, token_ids: jax.Array) -> jax.Array:
        """token_ids (T,) int32 in 0..V-1 -> (T, D), multiplied by the embedding multiplier.

        Ids were checked where the request came in; clipping costs nothing and keeps padding rows harmless.
        """
        weight = self.weight.get_value()
        hidden = constrain(weight.at[token_ids].get(mode="clip"), "batch", "embed")  # (T, D)
        multiplier = self.config.embedding_multiplier
        if multiplier == 1.0:
            return hidden
        if self.config.embedding_multiplier_rounded:
            return hidden * jnp.asarray(multiplier, hidden.dtype)
        return scale(hidden, multiplier)

    def logits(self, hidden: jax.Array, multiply: Multiply = product) -> jax.Array:
        """hidden (R, D) -> (R, V') float32: divided and soft-capped as the config says, -inf where vocabulary is
        padding."""
        config = self.config
        logits = constrain(multiply(hidden, self.weight.get_value()), "batch", "vocab_out")  # (R, V')
        if config.logits_divisor != 1.0:
            logits = logits / config.logits_divisor
        if config.final_softcap is not None:
            logits = jnp.tanh(logits / config.final_softcap) * config.final_softcap
        if logits.shape[1] == config.vocab_size:
            return logits
        return jnp.where(jnp.arange(logits.shape[1]) < config.vocab_size, logits, -jnp.inf)
