"""The device's view of a step: `StepInputs` in, `StepState` carried on the device, `StepOutput` out.

T tokens, S rows, P pages, MP pages per row; slots + 1 entries where the last one takes the writes of padding rows.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxinfer.runtime.sampling import Sampled, SamplingParamsRows, TokenScores, TokenTables

Array = Any  # numpy on the host, jax.Array on the device: the same dataclass describes both


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class StepInputs:
    """One `StepPlan` packed into a bucket's shapes. Positions, lengths and kv slots are derived on the device."""

    token_ids: Array  # (T,) i32; -1: the slot's last sampled token
    targets: Array  # (T,) i32 next prompt token for prompt log-probabilities, 0 where unused
    score_prompt: Array  # () bool: some row wants prompt log-probabilities
    slots: Array  # (S,) i32; padding rows name the last, spare slot
    query_lens: Array  # (S,) i32; 0 for padding rows
    start_at: Array  # (S,) i32: computed tokens of a row that was just admitted, -1 to go on from the slot
    samples: Array  # (S,) bool
    prompt_lens: Array  # (S,) i32
    regimes: Array  # (S,) i32: 1 where RoPE's long factors apply
    page_tables: Array  # (S, MP) i32, padded with the null page
    params: SamplingParamsRows


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class SlotState:
    """What a slot remembers between steps, on the device."""

    last_token: Array  # (slots + 1,) i32
    num_computed: Array  # (slots + 1,) i32
    tables: TokenTables

    @classmethod
    def zeros(cls, num_slots: int, vocab: int) -> SlotState:
        return cls(
            jnp.zeros(num_slots + 1, jnp.int32),
            jnp.zeros(num_slots + 1, jnp.int32),
            TokenTables.zeros(num_slots, vocab),
        )


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class StepOutput:
    sampled: Sampled  # (S, ...)
    prompt: TokenScores  # (T, ...)


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class AdmitInputs:
    """Per-slot tables for one admission; long histories take several calls of A tokens."""

    slot: Array  # () i32
    token_ids: Array  # (A,) i32
    count: Array  # () i32, valid tokens in token_ids
    offset: Array  # () i32, position of the first one
    prompt_len: Array  # () i32
    clear: Array  # () bool: first call for this admission
    bias_ids: Array  # (MAX_BIAS,) i32
    bias_values: Array  # (MAX_BIAS,) f32
    allow_only: Array  # () bool
    stop_ids: Array  # (MAX_STOP_IDS,) i32
