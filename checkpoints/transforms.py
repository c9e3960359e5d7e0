"""Where the rows of a tensor go: what the transforms of `checkpoints.rules` mean for a layer's sizes.

Dims: N query heads, K KV heads, G = N / K, H head_dim, D hidden, F MLP width; `tail` is (D,) for weights and () for
biases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxinfer.config import ModelConfig
from jaxinfer.models.stored_matrix import layer_of

Shape = tuple[int, ...]
Index = tuple[int | slice, ...]


@dataclass(frozen=True)
class Dims:
    """The sizes that transforms are written in."""

    heads: int  # N
    kv_heads: int  # K
    head: int  # H
    hidden: int  # D
    mlp: int  # F

    @classmethod
    def of(cls, config: ModelConfig, path: str) -> Dims:
        """Those of the layer that the parameter `path` belongs to, 0 for what it lacks; of one outside of them only
        `hidden` matters."""
        layer = config.layers[layer_of(path) or 0]
        mixer, width = layer.attention, 0 if layer.mlp is None else layer.mlp.intermediate_size
        if mixer is None:
            return cls(0, 0, 0, config.hidden_size, width)
        return cls(mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, config.hidden_size, width)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Placement:
    """Rows [begin, end) of the source, seen in the shape `view`, become `target[index]`."""

    begin: int
    end: int
    view: Shape
    index: Index


@dataclass(frozen=True)
class Layout:
    """What a transform means for given sizes: the shape that the source must have, and where its rows go."""

    source_shape: Shape
    placements: tuple[Placement, ...]


def _query_heads(d: Dims, begin: int, tail: Shape) -> Placement:
    view = (d.kv_heads, d.group, d.head, *tail)
    return Placement(begin, begin + d.heads * d.head, view, (slice(None), slice(0, d.group)))


def _kv_heads(d: Dims, begin: int, tail: Shape, row: int) -> Placement:
    view = (d.kv_heads, d.head, *tail)
    return Placement(begin, begin + d.kv_heads * d.head, view, (slice(None), row))


def _query(d: Dims, tail: Shape) -> Layout:
    return Layout((d.heads * d.head, *tail), (_query_heads(d, 0, tail),))


def _key(d: Dims, tail: Shape) -> Layout:
    return Layout((d.kv_heads * d.head, *tail), (_kv_heads(d, 0, tail, d.group),))


def _value(d: Dims, tail: Shape) -> Layout:
    return Layout((d.kv_heads * d.head, *tail), (_kv_heads(d, 0, tail, d.group + 1),))


def _query_key_value(d: Dims, tail: Shape) -> Layout:
    keys = d.heads * d.head
    values = keys + d.kv_heads * d.head
    return Layout(
        (values + d.kv_heads * d.head, *tail),
        (
            _query_heads(d, 0, tail),
            _kv_heads(d, keys, tail, d.group),
            _kv_heads(d, values, tail, d.group + 1),
        ),
    )


def _gate(d: Dims, tail: Shape) -> Layout:
    return Layout((d.mlp, *tail), (Placement(0, d.mlp, (d.mlp, *tail), (0,)),))


def _up(d: Dims, tail: Shape) -> Layout:
    return Layout((d.mlp, *tail), (Placement(0, d.mlp, (d.mlp, *tail), (1,)),))


def _gate_up(d: Dims, tail: Shape) -> Layout:
    view = (d.mlp, *tail)
    return Layout((2 * d.mlp, *tail), (Placement(0, d.mlp, view, (0,)), Placement(d.mlp, 2 * d.mlp, view, (1,))))


def _scalar(d: Dims, tail: Shape) -> Layout:
    """A tensor without axes, one number."""
    del d, tail
    return Layout((), (Placement(0, 1, (1,), ()),))


def _query_norm(d: Dims, tail: Shape) -> Layout:
    del tail
    return Layout((d.heads * d.head,), (Placement(0, d.heads * d.head, (d.kv_heads, d.group, d.head), ()),))


def _key_norm(d: Dims, tail: Shape) -> Layout:
    del tail
    return Layout((d.kv_heads * d.head,), (Placement(0, d.kv_heads * d.head, (d.kv_heads, d.head), ()),))


# Those that need no sizes are not listed (`layout_of`).
TRANSFORMS: Mapping[str, Callable[[Dims, Shape], Layout]] = {
    "query": _query,
    "key": _key,
    "value": _value,
    "query_key_value": _query_key_value,
    "gate": _gate,
    "up": _up,
    "gate_up": _gate_up,
    "scalar": _scalar,
    "query_norm": _query_norm,
    "key_norm": _key_norm,
}


def layout_of(transform: str, dims: Dims, target: Shape, *, bias: bool) -> Layout:
    """What a transform means for a parameter of the shape `target`.

    Beside those of `TRANSFORMS`: "copy", where the source has this shape; "attention_out", where the source has the
    heads that are inputs as one axis; "heads", where it has those that are outputs as one.
    """
    if transform == "copy":
        return Layout(target, (Placement(0, target[0], target, ()),))
    if transform == "attention_out":
        return Layout((target[0], math.prod(target[1:])), (Placement(0, target[0], target, ()),))
    if transform == "heads":
        rows, tail = (math.prod(target), ()) if bias else (math.prod(target[:-1]), target[-1:])
        return Layout((rows, *tail), (Placement(0, rows, target, ()),))
    return TRANSFORMS[transform](dims, () if bias else (dims.hidden,))
