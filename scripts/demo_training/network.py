"""The Llama architecture as it is trained: whole sequences, no cache.

Shape legend: B sequences, T tokens, D hidden, N query heads, K key/value heads, G = N / K, H head_dim, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from demo_training.kernels import attend, cross_entropy, project

_EMBEDDING_SCALE = 0.02
# See look_back: after the norm the constant is about 4, so the score n tokens back leads its neighbours by about 8.
_CONSTANT_COLUMN = 4 * _EMBEDDING_SCALE
_LOOK_BACK_GAIN = 2.0
_SLOWEST_FREQUENCY = 0.2  # radians per token


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Sizes of the network. The defaults stay under 3.5 million parameters.

    `product_dtype` is what factors of matrix products are rounded to, float32 or bfloat16; parameters, sums and what
    stands between the products are float32.

    Raises:
        ValueError: `heads` not divisible by `kv_heads`, a size that is not positive, or another product_dtype.
    """

    vocab_size: int = 2048
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 640
    context: int = 1024
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    product_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.product_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"product_dtype = {self.product_dtype}: must be float32 or bfloat16")
        for field in dataclasses.fields(self):
            if field.name != "product_dtype" and getattr(self, field.name) <= 0:
                raise ValueError(f"{field.name} = {getattr(self, field.name)}: must be positive")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads = {self.heads}: must be a multiple of kv_heads = {self.kv_heads}")

    @property
    def parameters(self) -> int:
        """Number of parameters, the tied embedding counted once."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.mlp + 2 * self.hidden
        return self.vocab_size * self.hidden + self.layers * layer + self.hidden


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of the rotary angles, (length, head_dim / 2) float32 each (Su et al., 2021)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotates (B, T, heads, H) pairs (i, i + H/2), the pairing that Hugging Face's Llama weights assume."""
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return jnp.concatenate((first * cos - second * sin, second * cos + first * sin), axis=-1)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis, with a learned scale (Zhang and Sennrich, 2019)."""

    def __init__(self, size: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones((size,), jnp.float32))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.scale[...]


def _matrix(rngs: nnx.Rngs, rows: int, columns: int, gain: float = 1.0) -> nnx.Param[jax.Array]:
    """An (in, out) matrix with variance gain^2 / in."""
    return nnx.Param(jax.random.normal(rngs.params(), (rows, columns), jnp.float32) * (gain * rows**-0.5))


class Attention(nnx.Module):
    """Causal grouped-query attention with rotary positions, no biases."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs) -> None:
        c = config
        self.config = config
        self.q = _matrix(rngs, c.hidden, c.heads * c.head_dim)
        self.k = _matrix(rngs, c.hidden, c.kv_heads * c.head_dim)
        self.v = _matrix(rngs, c.hidden, c.kv_heads * c.head_dim)
        self.o = _matrix(rngs, c.heads * c.head_dim, c.hidden, gain=(2 * c.layers) ** -0.5)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        c, (batch, length, _) = self.config, x.shape
        dtype, group = jnp.dtype(c.product_dtype), c.heads // c.kv_heads
        # One product for all heads; the parameters stay apart, as they are stored and as Muon treats them.
        matrix = jnp.concatenate((self.q[...], self.k[...], self.v[...]), axis=1)
        qkv = project(x.reshape(-1, c.hidden), matrix, dtype).reshape(batch, length, -1, c.head_dim)
        qk, v = jnp.split(qkv, (c.heads + c.kv_heads,), axis=2)
        q, k = jnp.split(rotate(qk, cos, sin), (c.heads,), axis=2)
        q, k, v = (jnp.swapaxes(part.astype(dtype), 1, 2) for part in (q * c.head_dim**-0.5, k, v))
        q = q.reshape(batch * c.kv_heads, group, length, c.head_dim)
        k, v = (part.reshape(batch * c.kv_heads, length, c.head_dim) for part in (k, v))
        mixed = attend(q, k, v).reshape(batch, c.heads, length, c.head_dim)
        mixed = jnp.swapaxes(mixed, 1, 2).reshape(batch * length, c.heads * c.head_dim)
        return project(mixed, self.o[...], dtype).reshape(x.shape)


class GatedMLP(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer, 2020)."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(config.product_dtype)
        self.gate = _matrix(rngs, config.hidden, config.mlp)
        self.up = _matrix(rngs, config.hidden, config.mlp)
        self.down = _matrix(rngs, config.mlp, config.hidden, gain=(2 * config.layers) ** -0.5)

    def __call__(self, x: jax.Array) -> jax.Array:
        # Two products: the gradient of one would have to be put together from its halves, which costs more.
        rows = x.reshape(-1, x.shape[-1])
        gate, up = (project(rows, matrix[...], self.dtype) for matrix in (self.gate, self.up))
        return project(jax.nn.silu(gate) * up, self.down[...], self.dtype).reshape(x.shape)


class Layer(nnx.Module):
    """One pre-norm transformer layer."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs) -> None:
        self.attention_norm = RMSNorm(config.hidden, config.norm_eps)
        self.attention = Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.hidden, config.norm_eps)
        self.mlp = GatedMLP(config, rngs=rngs)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Network(nnx.Module):
    """Token ids to the normalized last hidden state; the embedding is also the output matrix."""

    def __init__(self, config: NetworkConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        table = jax.random.normal(rngs.params(), (config.vocab_size, config.hidden), jnp.float32) * _EMBEDDING_SCALE
        self.embedding = nnx.Param(table)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = RMSNorm(config.hidden, config.norm_eps)
        look_back(self)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Hidden states (B, T, D) float32 for tokens (B, T) int32."""
        cos, sin = rotary_tables(tokens.shape[1], self.config.head_dim, self.config.rope_theta)
        x = self.embedding[...][tokens]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


def look_back(network: Network) -> None:
    """Starts the first heads of the first layer as heads that look one token back, the next one two, and so on.

    A network that copies (names, word lists) needs such a head before a later layer can learn to look for "what stood
    behind this token last time" (Olsson et al., 2022), and finds it late by itself: in a trial with word lists, 400
    steps ended at a loss of 0.25 with this start and of 1.02 without. Nothing holds the heads there later on.

    How: the embedding's first column is a constant, so the first row of a projection adds a fixed vector to every q or
    k. On the fast frequencies k gets nothing but phase 0 and q nothing but phase -n * frequency: their rotary product
    is largest n tokens back, whatever the tokens are. The slow frequencies stay random, for the content.
    """
    config, attention = network.config, network.layers[0].attention
    frequencies = config.rope_theta ** (-jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim)
    fast = frequencies > _SLOWEST_FREQUENCY
    both_halves = jnp.concatenate((fast, fast))

    def set_phase(projection: nnx.Param[jax.Array], head: int, angles: jax.Array) -> None:
        columns = slice(head * config.head_dim, (head + 1) * config.head_dim)
        matrix = projection[...]
        fixed = jnp.zeros_like(matrix[:, columns])
        fixed = fixed.at[0].set(_LOOK_BACK_GAIN * jnp.concatenate((jnp.cos(angles), jnp.sin(angles))))
        projection[...] = matrix.at[:, columns].set(jnp.where(both_halves, fixed, matrix[:, columns]))

    network.embedding[...] = network.embedding[...].at[:, 0].set(_CONSTANT_COLUMN)
    set_phase(attention.k, 0, jnp.zeros_like(frequencies))
    for head in range(config.heads // config.kv_heads):  # the query heads that share the first key head
        set_phase(attention.q, head, -(head + 1) * frequencies)


def mean_loss(network: Network, tokens: jax.Array, learned: jax.Array, *, chunk: int) -> jax.Array:
    """Mean next-token cross entropy in nats over those of tokens (B, T + 1) int32 that learned (B, T + 1) bool marks.

    The first column is never a target. Logits exist for `chunk` marked positions at a time: (B * T, V) float32 would be
    the largest array of the step.

    Raises:
        ValueError: B * T is not a multiple of chunk.
    """
    hidden = network(tokens[:, :-1])
    count = hidden.shape[0] * hidden.shape[1]
    if count % chunk:
        raise ValueError(f"chunk = {chunk}: must divide the batch's {count} positions")
    marked = learned[:, 1:].reshape(-1)
    dtype = jnp.dtype(network.config.product_dtype)
    states, targets = hidden.reshape(count, -1), tokens[:, 1:].reshape(-1)
    total = cross_entropy(states, network.embedding[...], targets, marked, chunk, dtype)
    return total / jnp.maximum(jnp.sum(marked), 1)
