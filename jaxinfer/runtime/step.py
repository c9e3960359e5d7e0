"""A step's forward pass: resolve token ids -> Decoder -> paged attention per layer -> write the slots back.

What follows it, drawing tokens and scoring prompts, are programs of their own (`draw.py`): they do not depend on the
number of tokens, so that few of them are compiled.

T tokens, S rows, M rows that draw at most, N query heads, K KV heads, H head_dim, D model, P pages. Nothing here
decides what runs: the plan did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from jaxinfer.config import ModelConfig
from jaxinfer.models.context import Attend, AttentionOf, Place, StepContext
from jaxinfer.models.decoder import Decoder
from jaxinfer.models.layers.linear import Multiply, product
from jaxinfer.models.layers.mlp import Gate, gated
from jaxinfer.models.layers.moe import MultiplyExperts, expert_product
from jaxinfer.models.layers.norm import Normalize, rms_norm
from jaxinfer.models.native_product import (
    native_gate,
    native_multiply,
    native_multiply_experts,
    native_normalize,
)
from jaxinfer.runtime.inputs import (
    SlotSettings,
    SlotSizes,
    SlotState,
    StepInputs,
    StepLayout,
    TableInputs,
)
from jaxinfer.runtime.sampling import MAX_LOGPROBS, admit, count_inputs
from jaxinfer.sharding import MODEL_AXES
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, RaggedBatch, paged_attention
from pallas_kernels.paged_attention.layout import Pages

KVCache = list[tuple[Pages, Pages]]  # K and V pages as `kv_cache.make_pool` makes them; layout.py says their shapes


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
    max_rows: int = 1  # M: what the largest program that draws takes
    form: str = "XLA"  # why products are computed as they are, for people

    @property
    def looped(self) -> bool:
        """Whether layers run in a loop, on one pool for all of them: compiled once instead of once for each layer.

        Not on a GPU, where a step must be one command buffer, which has no choice in it; nor on a TPU, where the loop
        compiles as fast, but would fetch a layer's weights only once they are chosen, and no device has said at what
        cost; nor on several CPU devices, which are there for tests of how arrays are split.
        """
        return self.target.platform == "cpu" and self.mesh.size == 1

    @property
    def product_backend(self) -> str:
        """What multiplies by weights, for people."""
        name = self.target.instructions
        return "xla" if name is None else f"native_cpu ({name})"

    def multiply(self, count: jax.Array | None = None) -> Multiply:
        """What multiplies by weights. count: () int32, rows from here on are padding; None: none is."""
        name = self.target.instructions
        return product if name is None else native_multiply(name, count)

    def gate(self, count: jax.Array) -> Gate:
        """What gates MLPs. count: as above."""
        name = self.target.instructions
        return gated if name is None else native_gate(name, count)

    @property
    def multiply_experts(self) -> MultiplyExperts:
        """What rows are multiplied by their experts with."""
        name = self.target.instructions
        return expert_product(self.target) if name is None else native_multiply_experts(name, self.target)

    def normalize(self, count: jax.Array) -> Normalize:
        """What normalizes. count: as above."""
        name = self.target.instructions
        return rms_norm if name is None else native_normalize(name, count)

    def attention(self, batches: Sequence[RaggedBatch]) -> AttentionOf:
        """What the layers call; batches: of each page table."""
        # What a loop over layers of several page tables chooses from.
        tables = jnp.stack([batch.page_tables for batch in batches]) if self.looped else None
        slots = jnp.stack([batch.slot_mapping for batch in batches]) if self.looped else None

        def at(place: Place) -> Attend:
            if tables is None or slots is None:
                assert isinstance(place.table, int)
                return self._attend(batches[place.table])
            page_tables = tables[place.table] + place.first_page
            slot_mapping = slots[place.table] + place.first_page * self.page_size
            return self._attend(dataclasses.replace(batches[0], page_tables=page_tables, slot_mapping=slot_mapping))

        return at

    def _attend(self, batch: RaggedBatch) -> Attend:
        mesh = self.mesh if self.mesh.size > 1 else None

        def attend(
            q: jax.Array,
            k: jax.Array,
            v: jax.Array,
            kv_layer: tuple[Pages, Pages],
            *,
            sinks: jax.Array | None = None,
            **options: Any,
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
                head_axis=MODEL_AXES if mesh is not None else None,
                options=AttentionOptions(**options),
                sinks=sinks,
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


def locate(inputs: StepInputs, slots: SlotState, page_size: int) -> tuple[Tokens, jax.Array, tuple[RaggedBatch, ...]]:
    """Where a step's tokens belong, from what the slots remember.

    Returns:
        The tokens; the page tables (tables, slots + 1, MP) with the step's writes; and of each table the rows' lengths,
        pages and kv slots.
    """
    num_tokens, num_rows = inputs.token_ids.shape[0], inputs.slots.shape[0]
    computed = slots.num_computed[inputs.slots]  # (S,)
    ends = jnp.cumsum(inputs.query_lens)  # (S,)
    query_start_loc = jnp.concatenate([jnp.zeros(1, jnp.int32), ends.astype(jnp.int32)])
    index = jnp.arange(num_tokens, dtype=jnp.int32)
    valid = index < query_start_loc[-1]
    # Compared with all ends: looking for them is a loop, which a GPU's command buffer does not take.
    rows = jnp.searchsorted(ends, index, side="right", method="compare_all")
    rows = jnp.minimum(rows, num_rows - 1).astype(jnp.int32)
    positions = jnp.where(valid, computed[rows] + index - query_start_loc[rows], 0)
    ids = jnp.where(inputs.token_ids >= 0, inputs.token_ids, slots.last_token[inputs.slots[rows]])
    seq_lens = jnp.where(inputs.query_lens > 0, computed + inputs.query_lens, 0).astype(jnp.int32)
    flat = slots.page_tables.reshape(-1).at[inputs.write_places].set(inputs.write_pages, mode="promise_in_bounds")
    page_tables = flat.reshape(slots.page_tables.shape)
    batches = []
    for table in page_tables[:, inputs.slots]:  # (S, MP)
        pages = table[rows, positions // page_size]
        slot_mapping = jnp.where(valid, pages * page_size + positions % page_size, 0)
        batches.append(
            RaggedBatch(
                query_start_loc=query_start_loc,
                seq_lens=seq_lens,
                page_tables=table,
                slot_mapping=slot_mapping.astype(jnp.int32),
            )
        )
    return Tokens(ids, rows, positions, valid), page_tables, tuple(batches)


def step(
    spec: StepSpec,
    layout: StepLayout,
    leaves: tuple[jax.Array, ...],
    kv: KVCache,
    slots: SlotState,
    hidden: jax.Array,
    expert_tokens: jax.Array | None,
    packed: jax.Array,
) -> tuple[jax.Array, KVCache, SlotState, jax.Array, jax.Array | None]:
    """One forward pass over a ragged batch.

    All but `leaves` and `packed` are donated by the caller. `hidden` (at least T, D) is where the hidden states after
    the final norm go, from the first entry on: what draws and what scores read them there, whatever T is. The step adds
    its tokens to `expert_tokens` (`ExpertCounts.array`), which is None in a model without experts.

    Returns:
        (2, M) int32: of the rows that draw, in their order, the entry of their last token in `hidden` and their slot;
        then the first entry and the spare slot. KV, slots, hidden states and the experts' tokens.
    """
    decoder: Decoder = nnx.merge(spec.graphdef, jax.tree.unflatten(spec.treedef, leaves))
    inputs = layout.unpack(packed)
    settings = SlotSettings.unpack(slots.settings[inputs.slots])
    tokens, page_tables, batches = locate(inputs, slots, spec.page_size)
    count = batches[0].query_start_loc[-1]
    context = StepContext.of(
        spec.config.ropes,
        tokens.positions,
        tokens.rows,
        settings.rope_variants[tokens.rows],
        spec.attention(batches),
        multiply=spec.multiply(count),
        gate=spec.gate(count),
        normalize=spec.normalize(count),
        multiply_experts=spec.multiply_experts,
        valid=tokens.valid,
        looped=spec.looped,
    )
    states, kv, expert_tokens = decoder.counted_states(tokens.ids, context, kv, expert_tokens)
    # Counted when consumed as an input: at sampling time the counts then cover the whole sequence, and a recomputed
    # sequence counts the same as one that was never preempted.
    tables = count_inputs(
        slots.tables, inputs.slots, tokens.ids, tokens.rows, tokens.positions, settings.prompt_lens, tokens.valid
    )
    row_ends, seq_lens = batches[0].query_start_loc[1:], batches[0].seq_lens
    spare = slots.last_token.shape[0] - 1
    writers = jnp.where(inputs.query_lens > 0, inputs.slots, spare)
    slots = dataclasses.replace(
        slots,
        num_computed=slots.num_computed.at[writers].set(seq_lens),
        page_tables=page_tables,
        tables=tables,
    )
    hidden = lax.dynamic_update_slice(hidden, states, (0, 0))
    return _drawing(inputs, row_ends, spare, spec.max_rows), kv, slots, hidden, expert_tokens


def _drawing(inputs: StepInputs, row_ends: jax.Array, spare: int, most: int) -> jax.Array:
    """What `step` returns of the rows that draw, (2, most) int32."""
    draws = inputs.drawing >= 0
    row = jnp.maximum(inputs.drawing, 0)
    last = jnp.where(draws, jnp.maximum(row_ends[row] - 1, 0), 0)
    slots = jnp.where(draws, inputs.slots[row], spare)
    more = most - row.shape[0]
    return jnp.stack([jnp.pad(last, (0, more)), jnp.pad(slots, (0, more), constant_values=spare)]).astype(jnp.int32)


def admit_step(sizes: SlotSizes, slots: SlotState, rows: jax.Array, inputs: TableInputs) -> SlotState:
    """Fills slots before the first step of the sequences that enter them.

    rows: (A, words of `SlotSizes.admission`) int32, the slots' settings, computed tokens and page tables. inputs: the
    token tables of one slot whose sampling reads them, the spare one if there is none.
    """
    words = slots.settings.shape[1]
    slot = rows[:, 0]
    page_tables = rows[:, 2 + words :].reshape(-1, sizes.num_tables, sizes.max_pages).swapaxes(0, 1)
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
    return SlotState(
        last_token=slots.last_token,
        num_computed=slots.num_computed.at[slot].set(rows[:, 1]),
        settings=slots.settings.at[slot].set(rows[:, 2 : 2 + words]),
        page_tables=slots.page_tables.at[:, slot].set(page_tables),
        tables=tables,
    )
