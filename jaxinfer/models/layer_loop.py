"""A decoder's layers in a loop, as far as they are alike.

A program with a copy of each layer takes time to compile for each of them. A loop over layers has one copy; what it
repeats is one layer, or several where kinds of layers alternate (windows in Gemma).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxinfer.models.context import Attend, KvLayer, Number, Place, StepContext
from jaxinfer.models.layer_choice import LayerChoice, Matrix
from jaxinfer.models.parameters import facts_of


@dataclass(frozen=True)
class Stretch:
    """Layers `start` to `start + period * turns - 1`: `turns` times the same `period` layers. One turn: no loop."""

    start: int
    period: int
    turns: int

    def layers(self, position: int) -> range:
        """The layers that stand at `position` of each turn."""
        return range(self.start + position, self.start + self.period * self.turns, self.period)


def stretches(kinds: Sequence[Hashable]) -> list[Stretch]:
    """The layers, by kind, cut so that little is left that does not repeat.

    The stretch that saves most layers comes first, the shortest period among equals; then what lies on both sides of it
    is cut alike. Layers between loops make a stretch of one turn.
    """
    if not kinds:
        return []
    best = Stretch(0, len(kinds), 1)
    for period in range(1, len(kinds) // 2 + 1):
        same = 0  # layers in a row that are of the kind that the layer `period` before them has
        for end, (before, kind) in enumerate(zip(kinds, kinds[period:], strict=False), start=period + 1):
            same = same + 1 if before == kind else 0
            turns = same // period + 1
            if period * (turns - 1) > best.period * (best.turns - 1):
                best = Stretch(end - same - period, period, turns)
    if best.turns == 1:
        return [best]
    stop = best.start + best.period * best.turns
    behind = [Stretch(s.start + stop, s.period, s.turns) for s in stretches(kinds[stop:])]
    return [*stretches(kinds[: best.start]), best, *behind]


def kinds_of(layers: Sequence[nnx.Module]) -> list[int]:
    """A number for each layer, equal where one program can stand for both: the same settings, and weights of the same
    shapes, types and quantization."""
    numbers: dict[Hashable, int] = {}
    kinds = []
    for layer in layers:
        graphdef, state = nnx.split(layer)
        leaves, treedef = jax.tree.flatten(nnx.to_pure_dict(state))
        kind = graphdef, treedef, tuple((leaf.shape, leaf.dtype) for leaf in leaves)
        kinds.append(numbers.setdefault(kind, len(numbers)))
    return kinds


# What goes from layer to layer: hidden states (T, D), the pages of all arrays, one behind the other, and the tokens of
# each expert (see `Decoder.counted_states`).
Carry = tuple[jax.Array, KvLayer, jax.Array | None]


def run_layers(
    layers: Sequence[nnx.Module],
    places: Sequence[tuple[int, int] | None],
    count_rows: Sequence[int | None],
    context: StepContext,
    carry: Carry,
) -> Carry:
    """All layers in their order, those that are alike as turns of a loop.

    What the loop carries is updated in place. A matrix is chosen where it is multiplied by and nowhere else: XLA:CPU
    would copy what a scan gives to a layer.

    Args:
        places: of every layer, the number of its page table, and that of its array among those that the pages are of;
            None for one without attention.
        count_rows: of every layer, its experts' row among the counted tokens; None for one without experts.

    Raises ValueError if the arrays cannot be of one size.
    """
    depth = max(place[1] for place in places if place is not None) + 1
    total = carry[1][0].shape[0]
    if total % depth:
        raise ValueError(f"the cache has {total} pages; for {depth} arrays of one size it must have a multiple")
    begins = [None if place is None else Place(place[0], place[1] * (total // depth)) for place in places]
    for stretch in stretches(kinds_of(layers)):
        if stretch.turns == 1:
            for i in range(stretch.start, stretch.start + stretch.period):
                carry = _run(layers[i], context, begins[i], count_rows[i], carry)
            continue
        members = [stretch.layers(position) for position in range(stretch.period)]
        looped = [
            _Looped([layers[i] for i in alike], [begins[i] for i in alike], [count_rows[i] for i in alike])
            for alike in members
        ]
        carry = jax.lax.fori_loop(0, stretch.turns, partial(_turn, looped, context), carry)
    return carry


def add_tokens(expert_tokens: jax.Array | None, row: Number | None, tokens: jax.Array | None) -> jax.Array | None:
    """`expert_tokens` with a layer's tokens (E,) in its row; as it was where nobody counts or nothing is counted."""
    if expert_tokens is None or tokens is None:
        return expert_tokens
    whole = jnp.pad(tokens, (0, expert_tokens.shape[1] - tokens.shape[0]))
    return expert_tokens.at[row].add(whole.astype(expert_tokens.dtype), mode="promise_in_bounds")


def _turn(layers: Sequence[_Looped], context: StepContext, index: jax.Array, carry: Carry) -> Carry:
    for layer in layers:
        carry = _run(layer.at(index), context, layer.place(index), layer.count_row(index), carry)
    return carry


def _run(layer: Any, context: StepContext, place: Place | None, count_row: Number | None, carry: Carry) -> Carry:
    hidden, pages, expert_tokens = carry
    hidden, pages, tokens = layer(hidden, context, _attention(context, place), pages)
    return hidden, pages, add_tokens(expert_tokens, count_row, tokens)


def _attention(context: StepContext, place: Place | None) -> Attend | None:
    return None if place is None else context.attention(place)


class _Looped:
    """Layers of one kind, their places and rows, of which one is picked in each turn. Made before the loop begins."""

    def __init__(
        self, layers: Sequence[nnx.Module], places: Sequence[Place | None], count_rows: Sequence[int | None]
    ) -> None:
        parts = [nnx.split(layer) for layer in layers]
        self._graphdef = parts[0][0]
        states = [dict(nnx.to_flat_state(state)) for _, state in parts]
        self._matrices: dict[Any, tuple[Any, tuple[Matrix, ...]]] = {}
        self._small: dict[Any, tuple[Any, jax.Array]] = {}
        for path, variable in states[0].items():
            values = tuple(state[path].get_value() for state in states)
            if facts_of(variable).inputs is not None:
                self._matrices[path] = variable, values
            else:  # norms and biases, a few kilobytes: cheaper to copy than to choose
                self._small[path] = variable, jnp.stack(values)
        self._tables = [place.table for place in places if place is not None]
        self._first_pages = [place.first_page for place in places if place is not None]
        self._count_rows = [row for row in count_rows if row is not None]

    def at(self, index: jax.Array) -> Any:
        """The layer of turn `index` () int32: its matrices are `LayerChoice`s, everything else is picked."""
        flat = [
            (path, variable.replace(LayerChoice(index, values))) for path, (variable, values) in self._matrices.items()
        ]
        flat += [(path, variable.replace(_item(values, index))) for path, (variable, values) in self._small.items()]
        return nnx.merge(self._graphdef, nnx.from_flat_state(flat))

    def place(self, index: jax.Array) -> Place | None:
        """Where the layer of turn `index` has its keys and values; None for layers without attention."""
        if not self._tables:
            return None
        same = len(set(self._tables)) == 1
        table = self._tables[0] if same else _item(jnp.array(self._tables, jnp.int32), index)
        return Place(table, _item(jnp.array(self._first_pages, jnp.int32), index))

    def count_row(self, index: jax.Array) -> Number | None:
        """The row of the experts of turn `index`; None for layers without experts."""
        return _item(jnp.array(self._count_rows, jnp.int32), index) if self._count_rows else None


def _item(values: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(values, index, keepdims=False)
