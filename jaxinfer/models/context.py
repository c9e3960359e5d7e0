"""What every layer of a step is given beside its input: one object, however many layers read something else of it.

Shapes: T tokens, N query heads, K' KV heads after repetition, H head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import jax

from jaxinfer.config import RopeConfig
from jaxinfer.models.layers.linear import Multiply, product
from jaxinfer.models.layers.mlp import Gate, gated
from jaxinfer.models.layers.moe import MultiplyExperts
from jaxinfer.models.layers.norm import Normalize, rms_norm
from jaxinfer.models.layers.rope import Rotation, rotation_tables
from pallas_kernels.paged_attention.layout import Pages

KvLayer = tuple[Pages, Pages]  # K and V pages of one layer; only the attention function looks inside
Number = int | jax.Array  # in a loop over layers () int32, traced


class Attend(Protocol):
    """Writes this step's K and V to the layer's pages, then attends causally over each token's own sequence.

    It closes over the batch description and the backend.
    """

    def __call__(
        self,
        q: jax.Array,  # (T, N, H), rotated
        k: jax.Array,  # (T, K', H), rotated
        v: jax.Array,  # (T, K', H)
        kv_layer: KvLayer,
        *,
        sliding_window: int | None,  # tokens that a query sees, itself included; None: all
        soft_cap: float | None,  # scores become cap * tanh(score / cap), after the scale
        scale: float,  # multiplies q.k
        sinks: jax.Array | None = None,  # (N,), a score of each head beside those of its keys
    ) -> tuple[jax.Array, KvLayer]:  # (T, N, H) in q's dtype
        ...


@dataclass(frozen=True)
class Place:
    """Where a layer's keys and values are.

    Attributes:
        table: number of the page table.
        first_page: what its page ids are counted from: not 0 where the pages of several layers are in one array.
    """

    table: Number
    first_page: Number = 0


class AttentionOf(Protocol):
    """What the step builds: the attention function of a layer whose keys and values are at `place`."""

    def __call__(self, place: Place) -> Attend: ...


def by_table(functions: Sequence[Attend]) -> AttentionOf:
    """One function for each page table, where every layer has arrays of its own."""

    def attention(place: Place) -> Attend:
        if not isinstance(place.table, int) or place.first_page != 0:
            raise ValueError(f"place is {place}; without a loop over layers it must be a number of a table alone")
        return functions[place.table]

    return attention


@dataclass(frozen=True)
class StepContext:
    """One step as its layers see it; lives while the step is traced. Build it with `StepContext.of`.

    Attributes:
        positions: (T,) int32, from 0 in each sequence.
        rows: (T,) int32, the batch row that each token belongs to.
        rotations: cosines and sines of each of `ModelConfig.ropes`, made once for all layers.
        attention: gives each layer its function.
        multiply: what layers multiply by their weights with.
        gate: what they gate their MLPs with.
        normalize: what they normalize with.
        multiply_experts: what rows are multiplied by their experts with; None: XLA's form for a CPU.
        valid: (T,) bool, tokens that are real; None: all are.
        looped: run layers that are alike in a loop. The cache is one pair of arrays then.
    """

    positions: jax.Array
    rows: jax.Array
    rotations: tuple[Rotation, ...]
    attention: AttentionOf
    multiply: Multiply = product
    gate: Gate = gated
    normalize: Normalize = rms_norm
    multiply_experts: MultiplyExperts | None = None
    valid: jax.Array | None = None
    looped: bool = False

    @classmethod
    def of(
        cls,
        ropes: Sequence[RopeConfig],
        positions: jax.Array,
        rows: jax.Array,
        rope_variant: jax.Array,
        attention: AttentionOf,
        *,
        multiply: Multiply = product,
        gate: Gate = gated,
        normalize: Normalize = rms_norm,
        multiply_experts: MultiplyExperts | None = None,
        valid: jax.Array | None = None,
        looped: bool = False,
    ) -> StepContext:
        """rope_variant: (T,) int32, 1 for tokens of sequences that are longer than `ModelConfig.longrope_border`."""
        rotations = tuple(rotation_tables(ropes, positions, rope_variant))
        return cls(
            positions,
            rows,
            rotations,
            attention,
            multiply=multiply,
            gate=gate,
            normalize=normalize,
            multiply_experts=multiply_experts,
            valid=valid,
            looped=looped,
        )
