"""How tensors of checkpoints lie in the decoder's parameters, as data: the transforms that the families' tables name.

Dims: N query heads, K KV heads, G = N / K, H head_dim, D hidden, F MLP width (an expert's in `moe`), E experts; `...`
is (D,) for weights and () for biases.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from jaxinfer.config import ModelConfig, MoeConfig
from jaxinfer.models.stored_matrix import layer_of, mlp_of

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
    experts: int = 0  # E

    @classmethod
    def of(cls, config: ModelConfig, path: str) -> Dims:
        """Those of the layer that the parameter `path` belongs to, 0 for what it lacks; of one outside of them only
        `hidden` matters."""
        layer = config.layers[layer_of(path) or 0]
        mixer, mlp = layer.attention, mlp_of(path, layer.feed_forward)
        experts = layer.feed_forward.num_experts if isinstance(layer.feed_forward, MoeConfig) else 0
        width = 0 if mlp is None else mlp.intermediate_size
        if mixer is None:
            return cls(0, 0, 0, config.hidden_size, width, experts)
        return cls(mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, config.hidden_size, width, experts)

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Placement:
    """Rows [begin, end) of the source, seen in the shape `view`, become `target[index]`.

    axes: the order that the view's axes have in the target, the first one first; (): their own.
    """

    begin: int
    end: int
    view: Shape
    index: Index
    axes: tuple[int, ...] = ()

    @property
    def region(self) -> Shape:
        """The shape of `target[index]`."""
        return tuple(self.view[axis] for axis in self.axes) if self.axes else self.view


@dataclass(frozen=True)
class Layout:
    """What a transform means for given sizes: the shape that the source must have, and where its rows go."""

    source_shape: Shape
    placements: tuple[Placement, ...]


@dataclass(frozen=True)
class Rule:
    """One line of a family's table; `{i}` stands for the layer, `{e}` for the expert whose part of the target it is.

    `transform` is one of `layout_of`'s. `expert`: which one, of a line that is written out.
    """

    source: str
    target: str
    transform: str = "copy"
    expert: int | None = None


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


def _sinks(d: Dims, tail: Shape) -> Layout:
    del tail
    return Layout((d.heads,), (Placement(0, d.heads, (d.kv_heads, d.group), ()),))


def _key_norm(d: Dims, tail: Shape) -> Layout:
    del tail
    return Layout((d.kv_heads * d.head,), (Placement(0, d.kv_heads * d.head, (d.kv_heads, d.head), ()),))


def _stacked_gate_up(d: Dims, tail: Shape) -> Layout:
    """All experts in one tensor, gates before ups."""
    return Layout((d.experts, 2 * d.mlp, *tail), (Placement(0, d.experts, (d.experts, 2, d.mlp, *tail), ()),))


def _experts_gate_up(d: Dims, tail: Shape) -> Layout:
    """gpt-oss: all experts in one tensor, gates and ups in turns, inputs before outputs."""
    shape, order = ((d.experts, d.hidden, d.mlp, 2), (0, 3, 2, 1)) if tail else ((d.experts, d.mlp, 2), (0, 2, 1))
    return Layout((*shape[:-2], 2 * d.mlp), (Placement(0, d.experts, shape, (), order),))


def _experts_down(d: Dims, tail: Shape) -> Layout:
    """gpt-oss: all experts in one tensor, inputs before outputs; of outputs alone they are as they come."""
    if not tail:
        return Layout((d.experts, d.hidden), (Placement(0, d.experts, (d.experts, d.hidden), ()),))
    return Layout((d.experts, d.mlp, d.hidden), (Placement(0, d.experts, (d.experts, d.mlp, d.hidden), (), (0, 2, 1)),))


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
    "stacked_gate_up": _stacked_gate_up,
    "experts_gate_up": _experts_gate_up,
    "experts_down": _experts_down,
    "sinks": _sinks,
}


def layout_of(rule: Rule, dims: Dims, target: Shape, tail: Shape | None = None) -> Layout:
    """What a line means for a parameter of this shape. tail: what `...` is; None: as the parameter's name says.

    Beside the transforms of `TRANSFORMS`: "copy", where the source has this shape; "attention_out", where the source
    has the heads that are inputs as one axis; "heads", where it has those that are outputs as one.
    """
    if rule.expert is not None:
        one = layout_of(dataclasses.replace(rule, expert=None), dims, target[1:], tail)
        parts = [dataclasses.replace(p, index=(rule.expert, *p.index)) for p in one.placements]
        return Layout(one.source_shape, tuple(parts))
    if rule.transform == "copy":
        return Layout(target, (Placement(0, target[0], target, ()),))
    if rule.transform == "attention_out":
        return Layout((target[0], math.prod(target[1:])), (Placement(0, target[0], target, ()),))
    bias = rule.target.endswith(".bias") if tail is None else not tail
    if rule.transform == "heads":
        outputs, inputs = (target, ()) if bias else (target[:-1], target[-1:])
        rows = math.prod(outputs)
        return Layout((rows, *inputs), (Placement(0, rows, target, ()),))
    if tail is None:
        tail = () if bias else (dims.hidden,)
    return TRANSFORMS[rule.transform](dims, tail)
