"""The programs that an engine runs, each lowered from shapes alone.

`step[T tokens, S rows]` is a forward pass, one for each bucket; `draw[R rows]` draws tokens after it, `score` scores
prompts, `admit` fills slots. Lowering traces, so it needs no weights, only their shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.draw import draw, head_leaves, mask_words, score
from jaxinfer.runtime.expert_counts import count_shape
from jaxinfer.runtime.inputs import SlotSizes, SlotState, TableInputs
from jaxinfer.runtime.kv_cache import Sizes, abstract_pool
from jaxinfer.runtime.packing import Packer
from jaxinfer.runtime.sampling import MAX_BIAS, MAX_STOP_IDS
from jaxinfer.runtime.step import StepSpec, admit_step, step
from jaxinfer.sharding import replicated
from pallas_kernels.paged_attention.layout import KVLayout

ADMIT_TOKENS = 512  # history tokens per admission call
ADMIT, SCORE = "admit", "score"


def draw_name(rows: int) -> str:
    return f"draw[{rows} rows]"


class Programs:
    """Lowers programs.

    Attributes:
        spec, sizes, layout: what they are programs for.
        tokens: that hidden states have room for: those of the largest bucket.
        packer: makes their inputs.
        mask_words: of the mask of tokens that a row may draw.
        head: which of the decoder's leaves programs need that multiply by the vocabulary.
    """

    def __init__(
        self,
        spec: StepSpec,
        leaves: Sequence[jax.Array | jax.ShapeDtypeStruct],
        sizes: Sizes,
        layout: KVLayout,
        vocab: int,
        tokens: int,
    ) -> None:
        self.spec, self.sizes, self.layout, self.tokens = spec, sizes, layout, tokens
        self.here = replicated(spec.mesh)
        groups = spec.config.cache_groups
        self.slot_sizes = SlotSizes.of(sizes.max_num_seqs, sizes.max_pages_per_sequence, sizes.page_size, groups)
        self.packer = Packer(self.slot_sizes, vocab, ADMIT_TOKENS)
        self.head = head_leaves(spec)
        self._vocab = vocab
        self.mask_words = mask_words(vocab)
        self._leaves = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding) for x in leaves)

    def step(self, bucket: Bucket, num_pages: int | None = None) -> jax.stages.Lowered:
        """The forward pass of a bucket (a smaller pool may stand in: temporaries do not grow)."""
        depth, looped = self.spec.config.cache_groups.depth, self.spec.looped
        kv = abstract_pool(self.layout, depth, num_pages or self.sizes.num_pages, self.spec.mesh, looped=looped)
        layout = self.packer.layout(bucket)
        inputs = self._struct((layout.size,), np.int32)
        state = kv, self.abstract_slots(), self.abstract_hidden(), self.abstract_expert_tokens()
        shardings = (self.here, *jax.tree.map(lambda s: s.sharding, state))
        function = partial(step, self.spec, layout)
        with jax.set_mesh(self.spec.mesh):
            jitted = jax.jit(function, donate_argnums=(1, 2, 3, 4), out_shardings=shardings)
            return jitted.lower(self._leaves, *state, inputs)

    def draw(self, rows: int) -> jax.stages.Lowered:
        """The program that draws for up to so many rows."""
        slots = self.abstract_slots()
        drawing = self._struct((2, self.spec.max_rows), np.int32)
        with jax.set_mesh(self.spec.mesh):
            jitted = jax.jit(partial(draw, self.spec, rows), donate_argnums=(6,), out_shardings=self.here)
            return jitted.lower(
                self._head_leaves(),
                self.abstract_hidden(),
                drawing,
                slots.num_computed,
                slots.settings,
                slots.tables,
                slots.last_token,
                self._struct((rows, self.mask_words), np.uint32),
            )

    def score(self) -> jax.stages.Lowered:
        """The program that scores the prompts of a step of any bucket."""
        with jax.set_mesh(self.spec.mesh):
            jitted = jax.jit(partial(score, self.spec), out_shardings=self.here)
            packed = self._struct((1 + self.tokens,), np.int32)
            return jitted.lower(self._head_leaves(), self.abstract_hidden(), packed)

    def admit(self) -> jax.stages.Lowered:
        """The program that fills slots before the first step of the sequences that enter them."""
        inputs = self._abstract(self.no_admission())
        with jax.set_mesh(self.spec.mesh):
            function = partial(admit_step, self.slot_sizes)
            jitted = jax.jit(function, donate_argnums=(0,), out_shardings=self.here)
            return jitted.lower(self.abstract_slots(), *inputs)

    def no_admission(self) -> tuple[np.ndarray, TableInputs]:
        """Arguments of `admit` with which it fills nothing but the spare slot."""
        tables = TableInputs(
            slot=np.int32(self.packer.spare_slot),
            token_ids=np.zeros(ADMIT_TOKENS, np.int32),
            count=np.int32(0),
            offset=np.int32(0),
            prompt_len=np.int32(0),
            clear=np.bool_(False),
            bias_ids=np.full(MAX_BIAS, self._vocab, np.int32),
            bias_values=np.zeros(MAX_BIAS, np.float32),
            allow_only=np.bool_(False),
            stop_ids=np.full(MAX_STOP_IDS, self._vocab, np.int32),
        )
        return self.packer.admission_rows([]), tables

    def zero_slots(self) -> SlotState:
        """Slots that nobody was admitted to. To be traced."""
        return SlotState.zeros(self.slot_sizes, self._vocab)

    def abstract_slots(self) -> SlotState:
        """The slot state as shapes."""
        slots: SlotState = self._abstract(jax.eval_shape(self.zero_slots))
        return slots

    def zero_hidden(self) -> jax.Array:
        """Where a step's hidden states go. To be traced."""
        return jnp.zeros((self.tokens, self.spec.config.hidden_size), self.spec.dtype)

    def abstract_hidden(self) -> jax.ShapeDtypeStruct:
        return self._struct((self.tokens, self.spec.config.hidden_size), jnp.dtype(self.spec.dtype))

    def abstract_expert_tokens(self) -> jax.ShapeDtypeStruct | None:
        """What steps count their experts' tokens in; None in a model without experts."""
        layers = self.spec.config.expert_layers
        return self._struct(count_shape(layers), np.uint32) if layers else None

    def _head_leaves(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        return tuple(self._leaves[index] for index in self.head)

    def _struct(self, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.here)

    def _abstract(self, tree: Any) -> Any:
        return jax.tree.map(lambda x: self._struct(jnp.shape(x), x.dtype), tree)
