"""The decoder one layer at a time, in float32 on the CPU: the host holds one layer, and the hidden states of all
samples.

The layers are the decoder's own; only the linear ones are replaced while a layer is traced, by some that note what goes
into them, or that round it as a quantized product would.

Legend: T tokens of a sample, padded; D model; I inputs of a matrix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checkpoints.verify import dense_attend
from jaxinfer.config import ModelConfig, RopeConfig
from jaxinfer.models.context import StepContext, by_table
from jaxinfer.models.decoder import Decoder, DecoderLayer, abstract_decoder
from jaxinfer.models.layers.linear import Linear, Multiply
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import matrices_of
from pallas_kernels.qtensor import FP8, Activations, round_activations

SHORTEST = 64  # tokens; samples are padded to this or a power of two above, so that few programs are compiled

OnInputs = Callable[[int, Mapping[str, jax.Array]], None]  # sample, {end of a matrix's name: (tokens, I) float32}


class _Noted:
    """A linear layer that remembers its input, rounded token by token first if the matrix wants that."""

    def __init__(self, inner: Linear, activations: Activations | None) -> None:
        self.inner, self.activations = inner, activations
        self.seen: Any = None

    def __call__(self, x: jax.Array, multiply: Multiply) -> jax.Array:
        self.seen = x.reshape(x.shape[0], -1)
        if self.activations is not None:
            x = rounded_activations(self.seen, self.activations).reshape(x.shape)
        return self.inner(x, multiply)


def rounded_activations(x: jax.Array, kind: Activations) -> jax.Array:
    """Activations (T, I) as a product of narrow types sees them, in float32."""
    numbers, scales = round_activations(x, kind)
    if kind == "fp8":  # by their bits: XLA drops a conversion to float8 that meets one back, rounding and all
        every = np.arange(256, dtype=np.uint8).view(FP8).astype(np.float32)
        wide = jnp.asarray(every)[jax.lax.bitcast_convert_type(numbers, jnp.uint8)]
    else:
        wide = numbers.astype(jnp.float32)
    return wide * scales


@partial(jax.jit, static_argnums=(0, 1, 2))
def _run_layer(
    graphdef: nnx.GraphDef,
    ropes: tuple[RopeConfig, ...],
    activations: tuple[tuple[str, Activations | None], ...],
    params: Any,
    hidden: jax.Array,
    rope_variant: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    layer: DecoderLayer = nnx.merge(graphdef, params)
    noted = {}
    for end, kind in activations:
        *modules, name = end.split(".")
        owner = functools.reduce(getattr, modules, layer)
        noted[end] = _Noted(getattr(owner, name), kind)
        setattr(owner, name, noted[end])
    positions = jnp.arange(hidden.shape[0], dtype=jnp.int32)
    attend = dense_attend(positions)
    context = StepContext.of(ropes, positions, jnp.zeros_like(positions), rope_variant, by_table([attend]))
    hidden, *_ = layer(hidden, context, attend, (jnp.zeros(0), jnp.zeros(0)))
    return hidden, {end: one.seen for end, one in noted.items()}


@partial(jax.jit, static_argnums=0)
def _run_logits(graphdef: nnx.GraphDef, params: Any, hidden: jax.Array) -> jax.Array:
    decoder: Decoder = nnx.merge(graphdef, params)
    return decoder.logits(decoder.final_norm(hidden))


class Layerwise:
    """Samples on their way through a decoder. `begin` embeds them, `layer` moves all of them on by one layer.

    Parameters are given in their canonical layout, in any floating type; they are widened to float32.
    """

    def __init__(self, config: ModelConfig, samples: Sequence[Sequence[int]]) -> None:
        self.config = config
        self._samples = samples
        self._graphdef, self._state = abstract_decoder(config, ModelShape.canonical(config), jnp.dtype(jnp.float32))
        self._decoder: Decoder = nnx.merge(self._graphdef, self._state)
        self._hidden: list[jax.Array] = []

    def begin(self, embedding: np.ndarray) -> None:
        """embedding: (V, D), of which the rows of tokens that occur are taken."""
        used = np.unique(np.concatenate([np.asarray(ids) for ids in self._samples]))
        graphdef, state = nnx.split(self._decoder.embed)
        rows = _filled(state, {"weight": embedding[np.append(used, 0)]})
        embed = nnx.merge(graphdef, rows)
        self._hidden = []
        for ids in self._samples:
            padded = np.full(_padded(len(ids)), len(used), np.int32)
            padded[: len(ids)] = np.searchsorted(used, ids)
            self._hidden.append(embed.embed(jnp.asarray(padded)))

    def layer(
        self,
        index: int,
        params: Mapping[str, np.ndarray],
        on_inputs: OnInputs | None = None,
        activations: Mapping[str, Activations | None] | None = None,
    ) -> None:
        """params: {path in the layer: array}. activations: {end of a matrix's name: what its inputs are rounded to}."""
        graphdef, state = nnx.split(self._decoder.layers[index])
        filled = _filled(state, params)
        kinds = tuple((end, (activations or {}).get(end)) for end in matrices_of(self.config.layers[index]))
        border = self.config.longrope_border
        for sample, ids in enumerate(self._samples):
            hidden = self._hidden[sample]
            rope_variant = jnp.full(hidden.shape[0], border is not None and len(ids) > border, jnp.int32)
            self._hidden[sample], seen = _run_layer(graphdef, self.config.ropes, kinds, filled, hidden, rope_variant)
            if on_inputs is not None:
                on_inputs(sample, {end: x[: len(ids)] for end, x in seen.items()})

    def logits(self, params: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Logits after every token of each sample, float32 (tokens, V). params: what does not belong to a layer."""
        decoder = self._decoder
        decoder.layers = nnx.List([])  # not in use any more
        graphdef, state = nnx.split(decoder)
        filled = _filled(state, params)
        return [
            np.asarray(_run_logits(graphdef, filled, hidden))[: len(ids)]
            for ids, hidden in zip(self._samples, self._hidden, strict=True)
        ]


def _padded(tokens: int) -> int:
    return max(SHORTEST, 1 << (tokens - 1).bit_length())


def _filled(state: nnx.State, params: Mapping[str, np.ndarray]) -> nnx.State:
    """The state with arrays in float32 for its shapes."""
    filled = [
        (key, leaf.replace(jnp.asarray(params[".".join(map(str, key))], jnp.float32)))
        for key, leaf in nnx.to_flat_state(state)
    ]
    return nnx.from_flat_state(filled)
