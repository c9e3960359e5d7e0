"""What sampling remembers of each slot's tokens, on the device.

Shapes: T tokens of a step, S rows, V vocabulary entries (padding included), A tokens admitted at once. Slots are
0..num_slots-1; one row more, the last, takes the writes of padding and is never read for a real row.
"""

import dataclasses

import jax
import jax.numpy as jnp

MAX_BIAS = 1024
"""Token ids a row may list in all of logit_bias, allowed and bad ids together."""

MAX_STOP_IDS = 128
"""Token ids a row may ban until min_tokens outputs exist."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenTables:
    """State of every slot; the step donates it and gives back the next one.

    Attributes:
        output_counts: (slots + 1, V) int32, how often each token occurs among the outputs.
        prompt_seen: (slots + 1, V) bool, whether the token occurs in the prompt.
        bias_ids: (slots + 1, MAX_BIAS) int32, each id at most once a row; V where unused.
        bias_values: (slots + 1, MAX_BIAS) float32, added to the logits of ``bias_ids``; -inf bans.
        allow_only: (slots + 1,) bool; where set, tokens that are not in ``bias_ids`` are banned.
        stop_ids: (slots + 1, MAX_STOP_IDS) int32, banned while a row has fewer than min_tokens outputs; V where unused.
    """

    output_counts: jax.Array
    prompt_seen: jax.Array
    bias_ids: jax.Array
    bias_values: jax.Array
    allow_only: jax.Array
    stop_ids: jax.Array

    @classmethod
    def zeros(cls, num_slots: int, vocab: int) -> "TokenTables":
        """Tables of ``num_slots`` empty slots and the trash row, for ``vocab`` entries with padding."""
        rows = num_slots + 1
        return cls(
            output_counts=jnp.zeros((rows, vocab), jnp.int32),
            prompt_seen=jnp.zeros((rows, vocab), bool),
            bias_ids=jnp.full((rows, MAX_BIAS), vocab, jnp.int32),
            bias_values=jnp.zeros((rows, MAX_BIAS), jnp.float32),
            allow_only=jnp.zeros((rows,), bool),
            stop_ids=jnp.full((rows, MAX_STOP_IDS), vocab, jnp.int32),
        )

    @property
    def trash(self) -> int:
        """Index of the row that padding writes to."""
        return self.output_counts.shape[0] - 1


def count_inputs(
    tables: TokenTables,
    slots: jax.Array,
    token_ids: jax.Array,
    row_of_token: jax.Array,
    positions: jax.Array,
    prompt_len: jax.Array,
    active: jax.Array,
) -> TokenTables:
    """Enters a step's input tokens into the tables. Call it before ``sample``, which then sees the whole sequence.

    A token counts when it is consumed as an input, so a token recomputed after preemption needs a cleared slot, and one
    that a prefix hit skips goes through ``admit``. Costs O(T), whatever the rows ask for.

    Args:
        tables: to be updated; donate it to the surrounding jit.
        slots: (S,) int32, each row's slot.
        token_ids: (T,) int32 in 0..V-1.
        row_of_token: (T,) int32 in 0..S-1.
        positions: (T,) int32, index of the token in its sequence; below ``prompt_len`` it belongs to the prompt.
        prompt_len: (S,) int32.
        active: (T,) bool; the others are padding.
    """
    in_prompt = positions < prompt_len[row_of_token]
    return _enter(tables, slots[row_of_token], token_ids, in_prompt, active)


def admit(
    tables: TokenTables,
    slot: jax.Array,
    token_ids: jax.Array,
    count: jax.Array,
    offset: jax.Array,
    prompt_len: jax.Array,
    clear: jax.Array,
    bias_ids: jax.Array,
    bias_values: jax.Array,
    allow_only: jax.Array,
    stop_ids: jax.Array,
) -> TokenTables:
    """Prepares a slot for the row that enters it, with the tokens that need no computing because of a prefix hit.

    More than A such tokens take several calls, of which only the first sets ``clear``. Every call stores the lists.

    Args:
        tables: to be updated; donate it.
        slot: () int32.
        token_ids: (A,) int32, of which the first ``count`` () int32 are entered.
        offset: () int32, position in the sequence of the first one.
        prompt_len: () int32, tokens at positions from here on are outputs.
        clear: () bool, forget what the slot held.
        bias_ids: (MAX_BIAS,) int32, as in ``TokenTables``; so are the next three.
        bias_values: (MAX_BIAS,) float32.
        allow_only: () bool.
        stop_ids: (MAX_STOP_IDS,) int32.
    """
    index = jnp.arange(token_ids.shape[0], dtype=jnp.int32)
    cleared = dataclasses.replace(
        tables,
        output_counts=tables.output_counts.at[slot].set(jnp.where(clear, 0, tables.output_counts[slot])),
        prompt_seen=tables.prompt_seen.at[slot].set(jnp.where(clear, False, tables.prompt_seen[slot])),
        bias_ids=tables.bias_ids.at[slot].set(bias_ids),
        bias_values=tables.bias_values.at[slot].set(bias_values),
        allow_only=tables.allow_only.at[slot].set(allow_only),
        stop_ids=tables.stop_ids.at[slot].set(stop_ids),
    )
    slots = jnp.full_like(token_ids, slot)
    return _enter(cleared, slots, token_ids, offset + index < prompt_len, index < count)


def _enter(
    tables: TokenTables, slots: jax.Array, token_ids: jax.Array, in_prompt: jax.Array, active: jax.Array
) -> TokenTables:
    """Marks prompt tokens and counts outputs; (T,) each. What is neither goes to the trash row."""
    prompt_rows = jnp.where(active & in_prompt, slots, tables.trash)
    output_rows = jnp.where(active & ~in_prompt, slots, tables.trash)
    return dataclasses.replace(
        tables,
        prompt_seen=tables.prompt_seen.at[prompt_rows, token_ids].set(True),
        output_counts=tables.output_counts.at[output_rows, token_ids].add(1),
    )
