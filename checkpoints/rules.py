"""Names and layouts as data: which Hugging Face tensor goes where in the decoder's parameters.

Dims: K KV heads, G query heads of each, H head_dim, F MLP width; `...` is (hidden,) for weights and () for biases.
Parameters are in their canonical layout here, that of one device (`ModelShape` with tp = 1):
`attention.qkv` is (K, G + 2, H, ...) with the G query heads first, then key, then value; `mlp.gate_up` is (2, F, ...);
`mlp.up` stands in its place where there is no gate. `checkpoints.transforms` says where the rows of a tensor go.

`plan_mapping` is strict both ways: every tensor of the source is used once or ignored by name, every element of every
parameter is set once, shapes and dtypes are checked. It reads headers only.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoints.files import CheckpointError
from checkpoints.reader import TensorInfo, TensorSource
from checkpoints.transforms import Dims, Layout, Placement, Shape, layout_of
from jaxinfer.config import ModelConfig

SOURCE_DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Rule:
    """One line of a family's table; `{i}` stands for the layer. `transform` is one of `layout_of`'s."""

    source: str
    target: str
    transform: str = "copy"


_LAYER = "model.layers.{i}."
_OURS = "layers.{i}."

_ENDS = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "final_norm.weight"),
    Rule("lm_head.weight", "lm_head.weight"),
)
# A rule whose parameter the model does not have (a bias, an untied head) is left out; then its tensor must not exist.
_ATTENTION = tuple(
    Rule(f"{_LAYER}self_attn.{name}_proj.{kind}", f"{_OURS}attention.{target}.{kind}", transform)
    for name, target, transform in (("q", "qkv", "query"), ("k", "qkv", "key"), ("v", "qkv", "value"))
    for kind in ("weight", "bias")
)
_FUSED_ATTENTION = (
    Rule(f"{_LAYER}self_attn.qkv_proj.weight", f"{_OURS}attention.qkv.weight", "query_key_value"),
)  # fmt: skip
_ATTENTION_OUT = (
    Rule(f"{_LAYER}self_attn.o_proj.weight", f"{_OURS}attention.out.weight", "attention_out"),
    Rule(f"{_LAYER}self_attn.o_proj.bias", f"{_OURS}attention.out.bias"),
)
_HEAD_NORMS = tuple(
    Rule(f"{_LAYER}self_attn.{name}.weight", f"{_OURS}attention.{name}.weight") for name in ("q_norm", "k_norm")
)
_WHOLE_NORMS = (
    Rule(f"{_LAYER}self_attn.q_norm.weight", f"{_OURS}attention.q_norm.weight", "query_norm"),
    Rule(f"{_LAYER}self_attn.k_norm.weight", f"{_OURS}attention.k_norm.weight", "key_norm"),
)
_MLP = tuple(
    Rule(f"{_LAYER}mlp.{name}_proj.{kind}", f"{_OURS}mlp.{target}.{kind}", transform)
    for name, target, transform in (("gate", "gate_up", "gate"), ("up", "gate_up", "up"), ("down", "down", "copy"))
    for kind in ("weight", "bias")
)
_UNGATED_MLP = tuple(
    Rule(f"{_LAYER}mlp.{name}_proj.{kind}", f"{_OURS}mlp.{name}.{kind}")
    for name in ("up", "down")
    for kind in ("weight", "bias")
)
_XIELU = tuple(
    Rule(f"{_LAYER}mlp.act_fn.{name}", f"{_OURS}mlp.xielu.{name}", transform)
    for name, transform in (("alpha_p", "copy"), ("alpha_n", "copy"), ("beta", "scalar"), ("eps", "scalar"))
)
_FUSED_MLP = (
    Rule(f"{_LAYER}mlp.gate_up_proj.weight", f"{_OURS}mlp.gate_up.weight", "gate_up"),
    Rule(f"{_LAYER}mlp.down_proj.weight", f"{_OURS}mlp.down.weight"),
)


def _norms(**names: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{_LAYER}{theirs}.weight", f"{_OURS}{ours}.weight") for ours, theirs in names.items())


_PRE_NORMS = _norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
_POST_NORMS = _norms(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
_FOUR_NORMS = _norms(
    attention_norm="input_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

_LATE_HEAD_NORMS = tuple(
    Rule(f"{_LAYER}self_attn.{theirs}_layernorm.weight", f"{_OURS}attention.{ours}_norm.weight")
    for ours, theirs in (("q", "query"), ("k", "key"))
)
_NAMED_NORMS = _norms(attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm")

# Where a layer has matrices as two factors: the names that SVD tools after ASVD4LLM give them, ALinear (out, rank) and
# BLinear (rank, in); and matrices that stand alone because one beside them is factored.
_LOW_RANK = tuple(
    rule
    for ours, theirs, outputs, inputs in (
        ("attention.q", "self_attn.q_proj", "heads", "copy"),
        ("attention.k", "self_attn.k_proj", "heads", "copy"),
        ("attention.v", "self_attn.v_proj", "heads", "copy"),
        ("attention.out", "self_attn.o_proj", "copy", "attention_out"),
        ("mlp.gate", "mlp.gate_proj", "copy", "copy"),
        ("mlp.up", "mlp.up_proj", "copy", "copy"),
        ("mlp.down", "mlp.down_proj", "copy", "copy"),
    )
    for rule in (
        Rule(f"{_LAYER}{theirs}.weight", f"{_OURS}{ours}.weight", outputs if inputs == "copy" else inputs),
        Rule(f"{_LAYER}{theirs}.bias", f"{_OURS}{ours}.bias", outputs),
        Rule(f"{_LAYER}{theirs}.BLinear.weight", f"{_OURS}{ours}.inner.weight", inputs),
        Rule(f"{_LAYER}{theirs}.ALinear.weight", f"{_OURS}{ours}.outer.weight", outputs),
        Rule(f"{_LAYER}{theirs}.ALinear.bias", f"{_OURS}{ours}.outer.bias", outputs),
    )
)
# One matrix in place of a layer's attention or MLP.
_LINEAR = tuple(
    Rule(f"{_LAYER}{theirs}.{kind}", f"{_OURS}{ours}.linear.{kind}")
    for ours, theirs in (("attention", "self_attn.linear_attn"), ("mlp", "mlp.linear_mlp"))
    for kind in ("weight", "bias")
)

_SEPARATE = (*_ENDS, *_ATTENTION, *_ATTENTION_OUT, *_MLP)
_UNGATED = (*_ENDS, *_ATTENTION, *_ATTENTION_OUT, *_UNGATED_MLP)

# Architecture (`ModelConfig.architecture`) -> its table.
FAMILY_RULES: Mapping[str, tuple[Rule, ...]] = {
    "LlamaForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "MistralForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Qwen2ForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Qwen3ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_PRE_NORMS),
    "Gemma2ForCausalLM": (*_SEPARATE, *_FOUR_NORMS),
    "Gemma3ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_FOUR_NORMS),
    "Phi3ForCausalLM": (*_ENDS, *_FUSED_ATTENTION, *_ATTENTION_OUT, *_FUSED_MLP, *_PRE_NORMS),
    "Olmo2ForCausalLM": (*_SEPARATE, *_WHOLE_NORMS, *_POST_NORMS),
    "GraniteForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "SmolLM3ForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Exaone4ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_POST_NORMS),
    "SeedOssForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Olmo3ForCausalLM": (*_SEPARATE, *_WHOLE_NORMS, *_POST_NORMS),
    "ArceeForCausalLM": (*_UNGATED, *_PRE_NORMS),
    "HunYuanDenseV1ForCausalLM": (*_SEPARATE, *_LATE_HEAD_NORMS, *_PRE_NORMS),
    "DeciLMForCausalLM": (*_SEPARATE, *_LINEAR, *_PRE_NORMS),
    "ApertusForCausalLM": (*_UNGATED, *_XIELU, *_HEAD_NORMS, *_NAMED_NORMS),
}

# Tensors that may be there and mean nothing, with the reason that the report gives.
IGNORED: Mapping[str, str] = {
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq": "computed from the config",
}
TIED_HEAD = "lm_head.weight"
TIED_REASON = "tied to the embedding, which holds the same values"


@dataclass(frozen=True)
class Entry:
    """One tensor of the source and what becomes of it."""

    source: str
    info: TensorInfo
    target: str
    transform: str
    placements: tuple[Placement, ...]


class Placed(Protocol):
    """Anything of the source that has places in a parameter."""

    @property
    def source(self) -> str: ...
    @property
    def placements(self) -> tuple[Placement, ...]: ...


@dataclass(frozen=True)
class TensorMapping:
    """A checked plan: `targets[path]` lists the tensors that make up the parameter; `ignored` gives name -> reason.

    `tied_head` is the name of an output matrix that the source carries although it is tied: its values must equal the
    embedding's, which only reading them can show (`checkpoints.tensor_assembly.check_tied_head`).
    """

    targets: dict[str, tuple[Entry, ...]]
    shapes: dict[str, Shape]
    ignored: dict[str, str]
    tied_head: str | None


def plan_mapping(
    config: ModelConfig,
    source: TensorSource,
    targets: Mapping[str, Shape],
    taken: frozenset[str] = frozenset(),
) -> TensorMapping:
    """Match the tensors of `source` with the parameters `targets` ({dotted path: canonical shape}).

    taken: tensors that are used elsewhere (`checkpoints.quantized`), for parameters that are not among `targets`.

    Raises:
        CheckpointError: a tensor is missing, left over, misshaped or of a dtype that is not floating point; the
            message names file, tensor, expected and found. Also if the family's table does not cover a parameter.
    """
    found: dict[str, list[Entry]] = {path: [] for path in targets}
    used: set[str] = set(taken)
    for rule in family_rules(config, source.folder):
        if rule.target not in targets:
            continue
        dims, bias = Dims.of(config, rule.target), rule.target.endswith(".bias")
        entry = _match(source, rule, layout_of(rule.transform, dims, targets[rule.target], bias=bias))
        found[rule.target].append(entry)
        used.add(rule.source)
    for path, entries in found.items():
        check_coverage(source, path, targets[path], entries)
    ignored = _ignored(config, source, used)
    tied = TIED_HEAD if TIED_HEAD in ignored else None
    if tied is not None:
        embedding = found["embed.weight"][0]
        _check_shape(source, tied, embedding.info.shape, "the embedding")
        _check_dtype(source, tied)
    return TensorMapping({path: tuple(entries) for path, entries in found.items()}, dict(targets), ignored, tied)


def family_rules(config: ModelConfig, folder: Path) -> Iterator[Rule]:
    """The lines of the family's table, written out for every layer. Raises CheckpointError if there is no table."""
    rules = FAMILY_RULES.get(config.architecture)
    if rules is None:
        raise CheckpointError(
            f"{folder}: no tensor names for architecture {config.architecture}; known are {', '.join(FAMILY_RULES)}"
        )
    for rule in rules:
        if "{i}" not in rule.source:
            yield rule
            continue
        for i in range(config.num_layers):
            yield Rule(rule.source.format(i=i), rule.target.format(i=i), rule.transform)
    for i, layer in enumerate(config.layers):
        for rule in _LOW_RANK if layer.ranks.given else ():
            if rule not in rules:
                yield Rule(rule.source.format(i=i), rule.target.format(i=i), rule.transform)


def _match(source: TensorSource, rule: Rule, layout: Layout) -> Entry:
    if rule.source not in source:
        raise CheckpointError(
            f"{source.folder}: tensor {rule.source} is missing; expected shape {layout.source_shape} for {rule.target}"
        )
    _check_shape(source, rule.source, layout.source_shape, rule.target)
    _check_dtype(source, rule.source)
    return Entry(rule.source, source.info(rule.source), rule.target, rule.transform, layout.placements)


def _check_shape(source: TensorSource, name: str, expected: Shape, target: str) -> None:
    info = source.info(name)
    if info.shape != expected:
        raise CheckpointError(
            f"{source.folder / info.file}: tensor {name}: expected shape {expected} for {target}, found {info.shape}"
        )


def _check_dtype(source: TensorSource, name: str) -> None:
    info = source.info(name)
    if info.dtype not in SOURCE_DTYPES:
        raise CheckpointError(
            f"{source.folder / info.file}: tensor {name}: expected dtype {', '.join(SOURCE_DTYPES)}, found {info.dtype}"
        )


def _ignored(config: ModelConfig, source: TensorSource, used: set[str]) -> dict[str, str]:
    ignored: dict[str, str] = {}
    for name in source.names:
        if name in used:
            continue
        reason = next((reason for pattern, reason in IGNORED.items() if re.fullmatch(pattern, name)), None)
        if reason is None and name == TIED_HEAD and config.tie_word_embeddings:
            reason = TIED_REASON
        if reason is None:
            info = source.info(name)
            raise CheckpointError(
                f"{source.folder / info.file}: tensor {name} {info.shape} is left over: expected no such tensor in a "
                f"{config.architecture} of {config.num_layers} layers with this config.json"
            )
        ignored[name] = reason
    return ignored


def check_coverage(source: TensorSource, path: str, shape: Shape, entries: Sequence[Placed]) -> None:
    """Every element of the parameter is set exactly once: the regions are disjoint boxes whose sizes add up."""
    placements = [placement for entry in entries for placement in entry.placements]
    boxes = [_box(placement, path, shape) for placement in placements]
    covered = sum(math.prod(end - begin for begin, end in box) for box in boxes)
    overlap = any(
        all(a[0] < b[1] and b[0] < a[1] for a, b in zip(one, two, strict=True))
        for one, two in itertools.combinations(boxes, 2)
    )
    if overlap or covered != math.prod(shape):
        raise CheckpointError(
            f"{source.folder}: parameter {path} {shape}: expected each of its {math.prod(shape)} elements to be set "
            f"once; {covered} are set by {[entry.source for entry in entries]}{', some twice' if overlap else ''}"
        )


def _box(placement: Placement, path: str, shape: Shape) -> list[tuple[int, int]]:
    """The region of the target as [begin, end) per axis. A table whose region cannot hold the view is a bug here."""
    full = placement.index + (slice(None),) * (len(shape) - len(placement.index))
    box, region = [], []
    for part, size in zip(full, shape, strict=True):
        begin, end, _ = part.indices(size) if isinstance(part, slice) else (part, part + 1, 1)
        if isinstance(part, slice):
            region.append(end - begin)
        if end > size:
            raise AssertionError(f"{path} {shape}: region {placement.index} ends outside of it")
        box.append((begin, end))
    if tuple(region) != placement.view:
        raise AssertionError(f"{path} {shape}: region {placement.index} cannot hold {placement.view}")
    return box
