"""The device's view of a step: one packed array in, `SlotState` carried on the device, `StepOutput` out.

T tokens, S rows, R rows of a program that draws, W page-table writes, A admissions of one call, MP pages of a row;
slots + 1 entries where the last one, the spare slot, takes the writes of padding rows.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxinfer.cache_groups import CacheGroups
from jaxinfer.runtime.buckets import Bucket
from jaxinfer.runtime.sampling import SamplingParamsRows, TokenScores, TokenTables
from jaxinfer.sampling_params import DEVICE_COLUMNS

Array = Any  # numpy on the host, jax.Array on the device: the same dataclass describes both

ADMISSIONS = 8  # slots that one call of the admission executable fills

# What an admission says of a slot for good: words of 32 bits, in this order, on the host and on the device.
SETTINGS = np.dtype(
    [
        ("prompt_len", np.int32),
        ("rope_variant", np.int32),
        *((name, np.int32 if column.dtype == "bool" else column.dtype) for name, column in DEVICE_COLUMNS.items()),
    ]
)
_FLAGS = tuple(name for name, column in DEVICE_COLUMNS.items() if column.dtype == "bool")


def neutral_settings(count: int) -> np.ndarray:
    """(count,) of `SETTINGS`: what slots hold that nobody was admitted to."""
    settings = np.zeros(count, SETTINGS)
    for name, column in DEVICE_COLUMNS.items():
        settings[name] = column.neutral
    return settings


@dataclasses.dataclass(frozen=True)
class SlotSettings:
    """`SETTINGS` of a step's rows, (S,) each. rope_variants: 1 where RoPE's long factors apply."""

    prompt_lens: jax.Array
    rope_variants: jax.Array
    params: SamplingParamsRows

    @classmethod
    def unpack(cls, words: jax.Array) -> SlotSettings:
        """words: (S, words of `SETTINGS`) int32."""
        values = {}
        for i, name in enumerate(SETTINGS.names or ()):
            word = words[:, i]
            values[name] = word != 0 if name in _FLAGS else lax.bitcast_convert_type(word, SETTINGS[name])
        return cls(values.pop("prompt_len"), values.pop("rope_variant"), SamplingParamsRows(**values))


@dataclasses.dataclass(frozen=True)
class SlotSizes:
    """What the sizes of slot state, inputs and admissions follow from.

    Attributes:
        num_slots: without the spare one.
        max_pages: MP.
        page_size: tokens of a page.
        num_tables: page tables of a sequence.
        windowed_tables: how many of them belong to layers with a sliding window, whose pages are given back.
    """

    num_slots: int
    max_pages: int
    page_size: int
    num_tables: int = 1
    windowed_tables: int = 0

    @classmethod
    def of(cls, num_slots: int, max_pages: int, page_size: int, groups: CacheGroups) -> SlotSizes:
        windowed = sum(len(group.tables) for group in groups.groups if group.spec.window is not None)
        return cls(num_slots, max_pages, page_size, groups.num_tables, windowed)

    def most_writes(self, bucket: Bucket) -> int:
        """W: the pages that a step's rows may append to every table, and as many that go from tables with a window."""
        return (self.num_tables + self.windowed_tables) * (bucket.tokens // self.page_size + bucket.rows)

    def place(self, table: int, slot: int, position: int) -> int:
        """Index into `SlotState.page_tables`, flattened."""
        return (table * (self.num_slots + 1) + slot) * self.max_pages + position

    def slot_of(self, place: int) -> int:
        return place // self.max_pages % (self.num_slots + 1)

    @property
    def admission(self) -> np.dtype:
        """One row of the admission executable, words of 32 bits. start: tokens that are computed already."""
        tables = (np.int32, (self.num_tables, self.max_pages))
        return np.dtype([("slot", np.int32), ("start", np.int32), ("settings", SETTINGS), ("page_tables", *tables)])


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """One `StepPlan` in a bucket's shapes, all int32. Positions, lengths and kv slots are derived on the device.

    Attributes:
        token_ids: (T,); -1: the slot's last sampled token.
        slots: (S,); padding rows name the spare slot.
        query_lens: (S,) tokens of each row; 0 for padding rows.
        drawing: (S,) the rows that draw a token at their end, in order, then -1.
        write_places: (W,) indices into the flattened page tables; unused ones name the spare slot.
        write_pages: (W,) what is written there before anything reads.
    """

    token_ids: Array
    slots: Array
    query_lens: Array
    drawing: Array
    write_places: Array
    write_pages: Array


@dataclasses.dataclass(frozen=True)
class StepLayout:
    """Where a step's inputs lie in the one int32 array that is sent: `StepInputs`, in the order of its fields."""

    tokens: int
    rows: int
    writes: int

    @classmethod
    def of(cls, bucket: Bucket, sizes: SlotSizes) -> StepLayout:
        return cls(bucket.tokens, bucket.rows, sizes.most_writes(bucket))

    @property
    def size(self) -> int:
        return self.tokens + 3 * self.rows + 2 * self.writes

    def unpack(self, packed: Array) -> StepInputs:
        """Views (numpy) or slices (traced) of packed (size,)."""
        parts, begin = [], 0
        for length in (self.tokens, *[self.rows] * 3, self.writes, self.writes):
            parts.append(packed[begin : begin + length])
            begin += length
        return StepInputs(*parts)


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class SlotState:
    """What a slot remembers between steps, on the device.

    Attributes:
        last_token: (slots + 1,) int32.
        num_computed: (slots + 1,) int32.
        settings: (slots + 1, words of `SETTINGS`) int32.
        page_tables: (tables, slots + 1, MP) int32, the null page where nothing is kept.
        tables: what sampling counts.
    """

    last_token: Array
    num_computed: Array
    settings: Array
    page_tables: Array
    tables: TokenTables

    @classmethod
    def zeros(cls, sizes: SlotSizes, vocab: int) -> SlotState:
        slots = sizes.num_slots + 1
        return cls(
            jnp.zeros(slots, jnp.int32),
            jnp.zeros(slots, jnp.int32),
            jnp.tile(neutral_settings(1).view(np.int32), (slots, 1)),
            jnp.zeros((sizes.num_tables, slots, sizes.max_pages), jnp.int32),
            TokenTables.zeros(sizes.num_slots, vocab),
        )


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class StepOutput:
    """What rows drew, in the order in which they were named: tokens (R,) int32, scores (R, ...)."""

    tokens: Array
    scores: TokenScores


@partial(jax.tree_util.register_dataclass)
@dataclasses.dataclass
class TableInputs:
    """Token tables of one admitted slot; histories of more than H tokens take several calls.

    Attributes:
        slot: () int32.
        token_ids: (H,) int32.
        count: () int32, valid tokens in token_ids.
        offset: () int32, position of the first one.
        prompt_len: () int32.
        clear: () bool, whether this is the admission's first call.
        bias_ids: (MAX_BIAS,) int32.
        bias_values: (MAX_BIAS,) float32.
        allow_only: () bool.
        stop_ids: (MAX_STOP_IDS,) int32.
    """

    slot: Array
    token_ids: Array
    count: Array
    offset: Array
    prompt_len: Array
    clear: Array
    bias_ids: Array
    bias_values: Array
    allow_only: Array
    stop_ids: Array


@dataclasses.dataclass(frozen=True)
class AdmitInputs:
    """One call of the admission executable. None where it has nothing to say of that kind.

    Attributes:
        rows: (A, words of `SlotSizes.admission`) int32; unused rows fill the spare slot with what is neutral.
        tables: the token tables of one slot, which few requests need.
    """

    rows: Array | None
    tables: TableInputs | None
