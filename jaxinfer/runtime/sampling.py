"""Chooses each row's next token on the device, inside the step, with fixed shapes.

Shapes: S rows, V vocabulary entries (padding included). A row goes through these stages:

1. a grammar's mask; allowed and bad ids, logit bias, the ban on stop ids before min_tokens; then the penalties of what
   those left: repetition, frequency, presence (``logits.py``);
2. temperature 0 takes the largest logit, the lowest id among equals;
3. otherwise temperature, then min-p, top-k over what is left, top-p over the renormalised rest (``thresholds.py``);
   ties at a threshold all stay, and the likeliest token always does;
4. one random number a row picks among the kept tokens: inverse distribution function over token ids.

The order is that of vLLM 0.32 (``v1/sample/sampler.py``). transformers 5 has the same but for two things: it cuts by
min-p last, so that its top-p sums over more tokens, and it bans after the penalties, which comes to the same, since no
penalty changes -inf. Ties at the threshold of top-p stay here, where both keep those that their sort puts first: a
row's result must not depend on a sort.

Beyond the logits, no row's result depends on the others by a single bit: sums are integers or have a written-out order,
everything else is done entry by entry. Stages that no row asks for are skipped by ``lax.cond``.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax

from jaxinfer.runtime import logits as adjust
from jaxinfer.runtime.logprobs import MAX_LOGPROBS, TokenScores, score_prompt, score_tokens
from jaxinfer.runtime.thresholds import (
    BLOCK,
    TopKTopP,
    first_of,
    fixed_point_scale,
    integer_weights,
    keys_of,
    multiply_high,
)
from jaxinfer.runtime.token_tables import MAX_BIAS, MAX_STOP_IDS, TokenTables, admit, count_inputs

__all__ = [
    "MAX_BIAS",
    "MAX_LOGPROBS",
    "MAX_STOP_IDS",
    "NO_TOKEN",
    "Sampled",
    "SamplingParamsRows",
    "TokenScores",
    "TokenTables",
    "admit",
    "count_inputs",
    "sample",
    "score_prompt",
]

NO_TOKEN = -1  # in place of a token, where no logit is above -inf
_DRAW = 0  # the purpose in a random key: drawing a token
_SMALLEST_EXPONENT = -87.0  # e^-87 is the last whole power above float32's denormals, which devices treat differently


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SamplingParamsRows:
    """What each row asks for; arrays of shape (S,). Padding rows hold the neutral values.

    Types, neutral values and ranges are those with which ``SamplingParams`` declares the parameters of these names;
    ``sampling_params.DEVICE_COLUMNS`` lists types and neutral values of all.

    Attributes:
        seed_low: lower half of the 64-bit seed.
        seed_high: upper half.
        sequence_index: which of the request's n sequences this is.
        num_logprobs: -1 none (neutral), 0 the chosen token's only, up to the engine's max_logprobs.
        has_penalties: whether any of the three penalties is not neutral.
        has_bias: whether the slot's bias list or ``allow_only`` is in use.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    repetition_penalty: jax.Array
    presence_penalty: jax.Array
    frequency_penalty: jax.Array
    seed_low: jax.Array
    seed_high: jax.Array
    sequence_index: jax.Array
    min_tokens: jax.Array
    num_logprobs: jax.Array
    has_penalties: jax.Array
    has_bias: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sampled:
    """The chosen tokens, (S,) int32, ``NO_TOKEN`` where there is none to choose; and their scores, which mean something
    in rows with num_logprobs >= 0 only."""

    tokens: jax.Array
    scores: TokenScores


def sample(
    logits: jax.Array,
    params: SamplingParamsRows,
    tables: TokenTables,
    slots: jax.Array,
    position: jax.Array,
    output_len: jax.Array,
    vocab_size: int,
    max_logprobs: int = MAX_LOGPROBS,
    masks: jax.Array | None = None,
    loops: bool = True,
) -> Sampled:
    """Chooses the next token of every row.

    Args:
        logits: (S, V) float32, as the model gives them; replicated when there are several devices. NaN never wins, and
            a row of nothing but NaN yields ``NO_TOKEN``.
        params: (S,) each.
        tables: state by slot, with this step's inputs already counted.
        slots: (S,) int32, each row's slot; padding rows name the trash row.
        position: (S,) int32, tokens in the sequence before the new one; part of the random key.
        output_len: (S,) int32, how many of those are outputs.
        vocab_size: entries of V that are real; the rest is never chosen.
        max_logprobs: alternatives that the scores have room for.
        masks: (S, ceil(V / 32)) uint32, which tokens a row may choose, see ``logits.let_through``; None: any.
        loops: whether the program may have loops. A GPU's should not: its command buffers take branches, but none with
            a loop inside, and what they do not take waits for the host. The results have the same bits.

    A row whose bans leave no token at all yields ``NO_TOKEN``, too: callers refuse such requests. Where min_tokens
    would ban all that is left, it does not.
    """
    if logits.ndim != 2 or logits.dtype != jnp.float32:
        raise TypeError(
            f"logits: got {logits.dtype}{logits.shape}, allowed is float32 of two dimensions (rows, vocabulary)"
        )
    if not 0 < vocab_size <= logits.shape[1]:
        raise ValueError(f"vocab_size: got {vocab_size}, allowed is 1 to {logits.shape[1]}, the width of the logits")
    adjusted = adjusted_logits(logits, params, tables, slots, output_len, vocab_size, masks)
    best = jnp.max(adjusted, axis=1)
    greedy = first_of(adjusted, best)
    random = params.temperature > 0

    def draw(adjusted: jax.Array) -> jax.Array:
        drawn = pick(*kept_tokens(adjusted, best, params, loops), random_bits(params, position, loops))
        return jnp.where(random & (best > -jnp.inf), drawn, greedy)

    tokens = lax.cond(jnp.any(random), draw, lambda _: greedy, adjusted)
    scores = lax.cond(
        jnp.any(params.num_logprobs >= 0),
        lambda logits: score_tokens(logits, tokens, vocab_size, jnp.any(params.num_logprobs > 0), max_logprobs),
        lambda logits: TokenScores.nothing(logits.shape[0], max_logprobs),
        logits,
    )
    return Sampled(jnp.where(best > -jnp.inf, tokens, NO_TOKEN), scores)


def adjusted_logits(
    logits: jax.Array,
    params: SamplingParamsRows,
    tables: TokenTables,
    slots: jax.Array,
    output_len: jax.Array,
    vocab_size: int,
    masks: jax.Array | None = None,
) -> jax.Array:
    """Stage 1: (S, V) logits without NaN and +inf, with -inf for every token that must not be chosen.

    A penalty takes the biased logit: 2.0 with a bias of 3 and a repetition penalty of 2 is 2.5. A banned token stays at
    -inf under every penalty.
    """
    min_tokens = output_len < params.min_tokens

    def penalize(logits: jax.Array) -> jax.Array:
        penalties = params.repetition_penalty, params.presence_penalty, params.frequency_penalty
        return adjust.penalize(logits, tables, slots, *penalties, params.has_penalties)

    def change(logits: jax.Array) -> jax.Array:
        logits = lax.cond(
            jnp.any(params.has_bias), lambda x: adjust.bias(x, tables, slots, params.has_bias), lambda x: x, logits
        )
        logits = lax.cond(
            jnp.any(min_tokens), lambda x: adjust.ban_stops(x, tables, slots, min_tokens), lambda x: x, logits
        )
        logits = lax.cond(jnp.any(params.has_penalties), penalize, lambda x: x, logits)
        return adjust.make_orderable(logits)  # a penalty may overflow

    orderable = adjust.make_orderable(logits)
    if masks is not None:
        orderable = adjust.let_through(orderable, masks)
    asked = jnp.any(params.has_penalties | params.has_bias | min_tokens)
    changed = lax.cond(asked, change, lambda x: x, orderable)
    return adjust.mask_vocabulary(changed, vocab_size)


def kept_tokens(
    adjusted: jax.Array, best: jax.Array, params: SamplingParamsRows, loops: bool = True
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Stage 3: (S, V) logits and their maxima (S,) -> what ``integer_weights`` takes: weights (S, V), scale (S,) and
    threshold (S,).

    Rows at temperature 0 come out as if at temperature 1 without any threshold but min-p.
    """
    random = params.temperature > 0
    temperature = jnp.where(random, params.temperature, 1.0)
    # Subtracting first: a tiny temperature could otherwise overflow. A row of bans alone has no finite maximum.
    top = jnp.where(best > -jnp.inf, best, 0.0)
    exponent = (adjusted - top[:, None]) / temperature[:, None]
    weights = jnp.where(exponent < _SMALLEST_EXPONENT, 0.0, jnp.exp(exponent))  # 1 for the likeliest token
    # Every later pass must see the same bits, not its own recomputation.
    weights = lax.optimization_barrier(weights)

    use_top_k = random & (params.top_k > 0) & (params.top_k < adjusted.shape[1])
    use_top_p = random & (params.top_p < 1.0)
    top_k_top_p = TopKTopP(weights, jnp.any(use_top_k | use_top_p), loops)
    threshold = keys_of(jnp.clip(params.min_p, 0.0, 1.0))
    threshold = lax.cond(
        jnp.any(use_top_k),
        lambda threshold: jnp.maximum(threshold, top_k_top_p.top_k(params.top_k, use_top_k)),
        lambda threshold: threshold,
        threshold,
    )
    scale = fixed_point_scale(weights, threshold)
    threshold = lax.cond(
        jnp.any(use_top_p),
        lambda threshold: top_k_top_p.top_p(params.top_p, scale, threshold, use_top_p),
        lambda threshold: threshold,
        threshold,
    )
    return weights, scale, threshold


def random_bits(params: SamplingParamsRows, position: jax.Array, loops: bool = True) -> jax.Array:
    """(S,) uint32 from (seed, sequence index, position, purpose) and nothing else.

    ``jax.random.key`` would drop the seed's upper half, so both halves are folded into a constant key.
    """
    words = jnp.stack(
        [
            params.seed_low.astype(jnp.uint32),
            params.seed_high.astype(jnp.uint32),
            params.sequence_index.astype(jnp.uint32),
            position.astype(jnp.uint32),
            jnp.full(position.shape, _DRAW, jnp.uint32),
        ]
    )  # (5, S)
    keys = jnp.broadcast_to(jax.random.key(0, impl="threefry2x32"), position.shape)
    fold = jax.vmap(jax.random.fold_in)
    if loops:  # the cipher is compiled once then, instead of five times
        keys, _ = lax.scan(lambda keys, word: (fold(keys, word), None), keys, words)
    else:
        for word in words:
            keys = fold(keys, word)
    return jax.random.key_data(keys)[:, 0]  # a folded key is the cipher's output, as random as bits drawn from it


def pick(weights: jax.Array, scale: jax.Array, threshold: jax.Array, bits: jax.Array) -> jax.Array:
    """Stage 4: the first token at which the running sum of weights, in id order, exceeds bits / 2^32 of the total.

    All integers: the drawn number is below the total by construction, so the sum always exceeds it somewhere, and where
    it first does the token has a positive weight. Two levels, blocks and then one block, save a running sum over V.
    """
    blocks = integer_weights(weights, scale, threshold).reshape(weights.shape[0], -1, BLOCK)  # (S, N, BLOCK)
    upto = jnp.cumsum(jnp.sum(blocks, axis=2, dtype=jnp.int32), axis=1)  # (S, N)
    drawn = multiply_high(bits, upto[:, -1].astype(jnp.uint32)).astype(jnp.int32)
    block = jnp.sum(upto <= drawn[:, None], axis=1, dtype=jnp.int32)
    before = jnp.where(block > 0, jnp.take_along_axis(upto, jnp.maximum(block - 1, 0)[:, None], axis=1)[:, 0], 0)
    inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1, mode="clip")[:, 0]  # (S, BLOCK)
    entry = jnp.sum(jnp.cumsum(inside, axis=1) <= (drawn - before)[:, None], axis=1, dtype=jnp.int32)
    return block * BLOCK + entry
