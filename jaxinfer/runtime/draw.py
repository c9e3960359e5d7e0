"""What follows a step's forward pass: drawing tokens and scoring prompts.

Both read the hidden states that `step.step` left, so neither depends on the number of the step's tokens. Both multiply
by the vocabulary, for the rows that are asked for alone. T tokens that hidden states have room for, M rows that draw at
most, R of them in one program, D model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.models.decoder import Decoder
from jaxinfer.runtime.inputs import SlotSettings, StepOutput
from jaxinfer.runtime.sampling import TokenScores, TokenTables, sample, score_prompt
from jaxinfer.runtime.step import StepSpec
from jaxinfer.sharding import constrain

# Positions whose logits exist at once when a prompt is scored. A short prompt fills less of a block: on a CPU, whose
# products cost what their rows do, blocks are small; elsewhere a block costs little more than the weights' reading.
PROMPT_BLOCK = {"cpu": 64}
DEFAULT_PROMPT_BLOCK = 256


def head_leaves(spec: StepSpec) -> tuple[int, ...]:
    """Which of the decoder's flat leaves its logits need."""
    tree = jax.tree.unflatten(spec.treedef, range(spec.treedef.num_leaves))
    wanted = "embed" if spec.config.tie_word_embeddings else "lm_head"
    return tuple(jax.tree.leaves(tree[wanted]))


def mask_words(vocab: int) -> int:
    """Words of 32 bits that have a bit for each of V logits."""
    return -(-vocab // 32)


def draw(
    spec: StepSpec,
    rows: int,
    head: Sequence[jax.Array],
    hidden: jax.Array,
    drawing: jax.Array,
    num_computed: jax.Array,
    settings: jax.Array,
    tables: TokenTables,
    last_token: jax.Array,
    masks: jax.Array,
) -> tuple[StepOutput, jax.Array]:
    """The next token of the first R of the rows that draw.

    Args:
        spec: of the step.
        rows: R.
        head: the leaves that `head_leaves` names.
        hidden: (T, D), as `step` left it.
        drawing: (2, M) int32, from `step`.
        num_computed, settings, tables, last_token: of the slots, after `step`. `last_token` is donated.
        masks: (R, `mask_words`) uint32, the tokens that each row may draw; all ones where nothing is said.

    Returns:
        The tokens and their scores, R rows; and the slots' last tokens with these. Rows beyond those that draw get
        what nobody reads, and write it to the spare slot.
    """
    last, slots = drawing[0, :rows], drawing[1, :rows]
    found = SlotSettings.unpack(settings[slots])
    position = num_computed[slots]
    spare = settings.shape[0] - 1
    sampled = sample(
        _whole_logits(spec, head, hidden[last], count=jnp.sum(slots != spare, dtype=jnp.int32)),
        found.params,
        tables,
        slots,
        position=position,
        output_len=position - found.prompt_lens,
        vocab_size=spec.config.vocab_size,
        max_logprobs=spec.max_logprobs,
        masks=masks,
        loops=spec.target.platform != "gpu",
    )
    # A row without a token ends at the next update; the step in flight until then still needs an id it can look up.
    last_token = last_token.at[slots].set(jnp.maximum(sampled.tokens, 0))
    return StepOutput(sampled.tokens, sampled.scores), last_token


def score(spec: StepSpec, head: Sequence[jax.Array], hidden: jax.Array, packed: jax.Array) -> TokenScores:
    """Scores of a step's prompt positions, (T, ...). packed: (1 + T,), see `Packer.pack_targets`."""
    return score_prompt(
        hidden,
        lambda states: _whole_logits(spec, head, states),
        packed[1:],
        packed[0],
        vocab_size=spec.config.vocab_size,
        block=PROMPT_BLOCK.get(spec.target.platform, DEFAULT_PROMPT_BLOCK),
        alternatives=spec.max_logprobs,
    )


def _whole_logits(
    spec: StepSpec, head: Sequence[jax.Array], hidden: jax.Array, count: jax.Array | None = None
) -> jax.Array:
    """(R, D) -> (R, V), of which rows from `count` on need not be computed. Every device gets whole rows: sampling
    searches them inside lax.cond, and scoring sums them piece by piece, each of a sharded row being a collective."""
    leaves: list[Any] = [None] * spec.treedef.num_leaves  # logits read no other parameters
    for index, leaf in zip(head_leaves(spec), head, strict=True):
        leaves[index] = leaf
    decoder: Decoder = nnx.merge(spec.graphdef, jax.tree.unflatten(spec.treedef, leaves))
    return constrain(decoder.logits(hidden, spec.multiply(count)), "batch", None)
