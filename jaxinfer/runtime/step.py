"""The one step function: resolve token ids -> Decoder -> paged attention per layer -> sample -> write the slots back.

T tokens, S rows, N query heads, K KV heads, H head_dim, D model, P pages. Nothing here decides what runs: the plan did.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxinfer.config import ModelConfig
from jaxinfer.models.context import Attend, StepContext
from jaxinfer.models.decoder import Decoder
from jaxinfer.runtime.inputs import AdmitInputs, SlotState, StepInputs, StepOutput
from jaxinfer.runtime.sampling import MAX_LOGPROBS, admit, count_inputs, sample, score_prompt
from jaxinfer.sharding import TENSOR_AXIS, constrain, tensor_size
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import RaggedBatch, paged_attention
from pallas_kernels.paged_attention.layout import Pages

KVCache = list[tuple[Pages, Pages]]  # per layer: K pages and V pages, shapes from layout.py
PROMPT_BLOCK = 256  # positions whose logits exist at once when a prompt is scored


@dataclass(frozen=True)
class StepSpec:
    """Everything static about the step. `graphdef` and `treedef` rebuild the Decoder from its flat leaves."""

    config: ModelConfig
    graphdef: Any
    treedef: Any
    mesh: Mesh
    target: DeviceTarget
    page_size: int
    dtype: str  # of the activations
    attention_backend: str | None = None
    max_logprobs: int = MAX_LOGPROBS

    def attention(self, batch: RaggedBatch) -> Attend:
        """What the layers of one page table call."""
        mesh = self.mesh if tensor_size(self.mesh) > 1 else None

        def attend(
            q: jax.Array, k: jax.Array, v: jax.Array, kv_layer: tuple[Pages, Pages], **options: Any
        ) -> tuple[jax.Array, tuple[Pages, Pages]]:
            out, k_pages, v_pages = paged_attention(
                q,
                k,
                v,
                *kv_layer,
                batch,
                target=self.target,
                backend=self.attention_backend,
                mesh=mesh,
                head_axis=TENSOR_AXIS if mesh is not None else None,
                **options,
            )
            return out, (k_pages, v_pages)

        return attend


@partial(jax.tree_util.register_dataclass)
@dataclass
class Tokens:
    """Where each of the step's T tokens belongs, derived from rows and slots."""

    ids: jax.Array  # (T,)
    rows: jax.Array  # (T,) row of each token; padding tokens get some row and valid = False
    positions: jax.Array  # (T,)
    valid: jax.Array  # (T,) bool


def locate(inputs: StepInputs, slots: SlotState, page_size: int) -> tuple[Tokens, RaggedBatch]:
    """Positions, sequence lengths and kv slots of a step, from what the slots remember."""
    num_tokens, num_rows = inputs.token_ids.shape[0], inputs.slots.shape[0]
    computed = jnp.where(inputs.start_at >= 0, inputs.start_at, slots.num_computed[inputs.slots])  # (S,)
    ends = jnp.cumsum(inputs.query_lens)  # (S,)
    query_start_loc = jnp.concatenate([jnp.zeros(1, jnp.int32), ends.astype(jnp.int32)])
    index = jnp.arange(num_tokens, dtype=jnp.int32)
    valid = index < query_start_loc[-1]
    rows = jnp.minimum(jnp.searchsorted(ends, index, side="right"), num_rows - 1).astype(jnp.int32)
    positions = jnp.where(valid, computed[rows] + index - query_start_loc[rows], 0)
    ids = jnp.where(inputs.token_ids >= 0, inputs.token_ids, slots.last_token[inputs.slots[rows]])
    pages = inputs.page_tables[rows, positions // page_size]
    slot_mapping = jnp.where(valid, pages * page_size + positions % page_size, 0)
    seq_lens = jnp.where(inputs.query_lens > 0, computed + inputs.query_lens, 0).astype(jnp.int32)
    batch = RaggedBatch(
        query_start_loc=query_start_loc,
        seq_lens=seq_lens,
        page_tables=inputs.page_tables,
        slot_mapping=slot_mapping.astype(jnp.int32),
    )
    return Tokens(ids, rows, positions, valid), batch


def _same_for_all_tables(decoder: Decoder, attend: Attend) -> tuple[Attend, ...]:
    """To be removed when a step's inputs hold every page table: all layers share one, and each has a pool array of
    its own, whatever `cache_groups` says."""
    decoder.arrays = tuple(range(len(decoder.layers)))
    return (attend,) * decoder.config.cache_groups.num_tables


def step(
    spec: StepSpec, leaves: tuple[jax.Array, ...], kv: KVCache, slots: SlotState, inputs: StepInputs
) -> tuple[StepOutput, KVCache, SlotState]:
    """One forward pass over a ragged batch, and one sampled token for each row that asks for it.

    `kv` and `slots` are donated by the caller. Rows that do not sample get an arbitrary token that nobody reads.
    """
    decoder: Decoder = nnx.merge(spec.graphdef, jax.tree.unflatten(spec.treedef, leaves))
    tokens, batch = locate(inputs, slots, spec.page_size)
    context = StepContext.of(
        spec.config.ropes,
        tokens.positions,
        tokens.rows,
        inputs.regimes[tokens.rows],
        attention=_same_for_all_tables(decoder, spec.attention(batch)),
    )
    hidden, kv = decoder.hidden_states(tokens.ids, context, kv)
    # Counted when consumed as an input: at sampling time the counts then cover the whole sequence, and a recomputed
    # sequence counts the same as one that was never preempted.
    tables = count_inputs(
        slots.tables, inputs.slots, tokens.ids, tokens.rows, tokens.positions, inputs.prompt_lens, tokens.valid
    )
    last = jnp.maximum(batch.query_start_loc[1:] - 1, 0)  # (S,) each row's last token

    def whole_logits(hidden: jax.Array) -> jax.Array:
        """Every device gets whole rows: sampling searches them inside lax.cond, and scoring sums them piece by piece,
        each piece of a sharded row being a collective of its own."""
        return constrain(decoder.logits(hidden), "batch", None)

    sampled = sample(
        whole_logits(hidden[last]),
        inputs.params,
        tables,
        inputs.slots,
        position=batch.seq_lens,
        output_len=batch.seq_lens - inputs.prompt_lens,
        vocab_size=spec.config.vocab_size,
        max_logprobs=spec.max_logprobs,
    )
    prompt = score_prompt(
        hidden,
        whole_logits,
        inputs.targets,
        inputs.score_prompt,
        vocab_size=spec.config.vocab_size,
        block=PROMPT_BLOCK,
        alternatives=spec.max_logprobs,
    )
    writers = jnp.where(inputs.query_lens > 0, inputs.slots, slots.last_token.shape[0] - 1)
    # A row without a token ends at the next update; the step in flight until then still needs an id it can look up.
    kept = jnp.where(inputs.samples, jnp.maximum(sampled.tokens, 0), slots.last_token[inputs.slots])
    slots = SlotState(
        last_token=slots.last_token.at[writers].set(kept),
        num_computed=slots.num_computed.at[writers].set(batch.seq_lens),
        tables=tables,
    )
    return StepOutput(sampled, prompt), kv, slots


def admit_step(slots: SlotState, inputs: AdmitInputs) -> SlotState:
    """Fills a slot's token tables before the first step of a sequence whose sampling reads them."""
    tables = admit(
        slots.tables,
        inputs.slot,
        inputs.token_ids,
        inputs.count,
        inputs.offset,
        inputs.prompt_len,
        inputs.clear,
        inputs.bias_ids,
        inputs.bias_values,
        inputs.allow_only,
        inputs.stop_ids,
    )
    return SlotState(slots.last_token, slots.num_computed, tables)
