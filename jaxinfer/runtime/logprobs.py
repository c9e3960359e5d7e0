"""Log-probabilities of chosen tokens, their ranks, and the likeliest alternatives, always of the raw logits.

Shapes: S rows, T positions of a step, B positions in a block, V vocabulary entries (padding included), D model width,
K alternatives reported (static; the engine's max_logprobs).
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.runtime.logits import mask_vocabulary
from jaxinfer.runtime.thresholds import integer_sum, pairwise_sum
from jaxinfer.sampling_params import MAX_LOGPROBS

_MIN_BLOCK = 8  # fewer rows would let XLA:CPU compute the head's product differently, so that its bits depended on T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenScores:
    """Scores of one token in each of R rows.

    Attributes:
        logprobs: (R,) float32, log-softmax of the raw logits at the token.
        ranks: (R,) int32, 1 + the number of tokens with a strictly larger logit.
        top_ids: (R, K) int32, likeliest first, lower ids first among equals.
        top_logprobs: (R, K) float32, of ``top_ids``; -inf beyond the vocabulary.
    """

    logprobs: jax.Array
    ranks: jax.Array
    top_ids: jax.Array
    top_logprobs: jax.Array

    @classmethod
    def nothing(cls, rows: int, alternatives: int) -> "TokenScores":
        """What rows that asked for no scores get: zeros."""
        return cls(
            logprobs=jnp.zeros((rows,), jnp.float32),
            ranks=jnp.zeros((rows,), jnp.int32),
            top_ids=jnp.zeros((rows, alternatives), jnp.int32),
            top_logprobs=jnp.zeros((rows, alternatives), jnp.float32),
        )


def score_tokens(
    logits: jax.Array,
    tokens: jax.Array,
    vocab_size: int,
    with_top: jax.Array,
    alternatives: int = MAX_LOGPROBS,
) -> TokenScores:
    """Scores ``tokens`` (S,) under raw ``logits`` (S, V) float32; only padding of the vocabulary is masked.

    ``with_top``: scalar bool; when False the top lists are zeros. The sum of the softmax is taken in an order that
    depends on V alone, so a row's bits do not depend on the other rows.
    """
    logits = mask_vocabulary(logits, vocab_size)
    best = jnp.max(logits, axis=1)
    log_total = jnp.log(pairwise_sum(jnp.exp(logits - best[:, None])))
    chosen = jnp.take_along_axis(logits, tokens[:, None], axis=1)  # (S, 1)
    ranks = integer_sum(logits > chosen) + 1

    def top(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
        values, ids = lax.top_k(logits, alternatives)
        return ids, values - best[:, None] - log_total[:, None]

    nothing = TokenScores.nothing(logits.shape[0], alternatives)
    top_ids, top_logprobs = lax.cond(with_top, top, lambda _: (nothing.top_ids, nothing.top_logprobs), logits)
    return TokenScores(chosen[:, 0] - best - log_total, ranks, top_ids, top_logprobs)


def score_prompt(
    hidden: jax.Array,
    head: Callable[[jax.Array], jax.Array],
    targets: jax.Array,
    count: jax.Array,
    *,
    vocab_size: int,
    block: int = 256,
    alternatives: int = MAX_LOGPROBS,
) -> TokenScores:
    """Scores each position's next token without ever holding the logits of more than ``block`` positions.

    Args:
        hidden: (T, D), the decoder's output.
        head: (B, D) -> (B, V) float32 logits.
        targets: (T,) int32, the token that follows each position.
        count: () int32; positions from here on need no scores: only blocks in front of it are computed.
        vocab_size: entries of V that are real.
        block: the largest B.
        alternatives: K.

    Returns:
        TokenScores with T rows, zeros where nothing was computed.
    """
    length = hidden.shape[0]
    padding = max(0, _MIN_BLOCK - length)
    hidden, targets = jnp.pad(hidden, ((0, padding), (0, 0))), jnp.pad(targets, (0, padding))
    size = min(block, length + padding)

    def score(index: jax.Array, scores: TokenScores) -> TokenScores:
        start = jnp.minimum(index * size, length + padding - size)  # the last block may overlap the one before it
        part, wants = (lax.dynamic_slice_in_dim(array, start, size) for array in (hidden, targets))
        found = score_tokens(head(part), wants, vocab_size, jnp.array(True), alternatives)
        return jax.tree.map(lambda all, some: lax.dynamic_update_slice_in_dim(all, some, start, 0), scores, found)

    nothing = TokenScores.nothing(length + padding, alternatives)
    scores = lax.fori_loop(0, (count + size - 1) // size, score, nothing)
    return jax.tree.map(lambda array: array[:length], scores)
