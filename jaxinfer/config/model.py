"""What the network is: one language for all families; `jaxinfer.models.registry` translates Hugging Face configs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from jaxinfer.cache_groups import CacheGroups
from jaxinfer.config.errors import ConfigError, require, require_counts
from jaxinfer.config.field_types import check_field_types
from jaxinfer.config.layers import (
    WHOLE,
    AttentionConfig,
    FeedForward,
    LayerConfig,
    LinearConfig,
    MlpConfig,
    MoeConfig,
    RankConfig,
    RopeConfig,
    RouterConfig,
)

DTypeName = Literal["float32", "bfloat16"]

_RARE = ("linear_rope_counted", "context_length", "notes")  # fields of ModelConfig


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only Transformer. Sizes in elements; every multiplier is applied exactly once, in float32 semantics.

    norms: `pre_norm` normalises the input of attention and MLP (Llama); `post_norm` their output before the residual
    add (OLMo 2 has only these, Gemma has both). `norm_offset` is 1.0 where the stored weight is (weight - 1) (Gemma).
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...]
    dtype: DTypeName = "bfloat16"  # the checkpoint's; "auto" in RuntimeConfig means this one
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    norm_scale_float32: bool = False  # True: scale in float32, then round (Gemma, OLMo 2); False: round, then scale
    pre_norm: bool = True
    post_norm: bool = False
    final_softcap: float | None = None
    tie_word_embeddings: bool = False
    embedding_multiplier: float = 1.0
    embedding_multiplier_rounded: bool = False  # True: the multiplier itself is rounded to the model dtype (Gemma)
    residual_multiplier: float = 1.0
    logits_divisor: float = 1.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    pad_token_id: int | None = None
    linear_rope_counted: bool = False  # max_position_embeddings has linear RoPE's factor in it already (Gemma 3)
    context_length: int | None = None  # tokens, before RoPE stretches it; None: max_position_embeddings
    tokenizer_length: int | None = None  # the tokenizer's model_max_length, where that is less; tokens, as above
    notes: tuple[str, ...] = field(default=(), compare=False)  # what whoever serves the model should be told

    def __post_init__(self) -> None:
        require_counts(self, "vocab_size", "hidden_size", "max_position_embeddings")
        check_field_types(self)
        for name in ("context_length", "tokenizer_length"):
            if getattr(self, name) is not None:
                require_counts(self, name)
        require(len(self.layers) > 0, "layers is empty; a model needs one at least")
        require(any(layer.attention for layer in self.layers), "no layer has attention; one at least must have it")
        first = self.attentions[0]
        for index, layer in enumerate(self.layers):
            mixer = layer.attention
            if mixer is None:
                continue
            require(
                mixer.rope is None or 0 <= mixer.rope < len(self.ropes),
                f"layer {index} names rope {mixer.rope} of ropes, which has {len(self.ropes)}",
            )
            if mixer.rope is not None:
                rotary_dim = self.ropes[mixer.rope].rotary_dim
                require(rotary_dim <= mixer.head_dim, f"rotary_dim {rotary_dim} exceeds head_dim {mixer.head_dim}")
            require(
                mixer.head_dim == first.head_dim,
                f"layer {index} has heads of head_dim {mixer.head_dim}, another of {first.head_dim}; they must be the "
                "same in all layers",
            )
        require(self.pre_norm or self.post_norm, "a layer needs pre_norm, post_norm or both")

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def attentions(self) -> tuple[AttentionConfig, ...]:
        """The attention of each layer that has it."""
        return tuple(layer.attention for layer in self.layers if layer.attention is not None)

    @cached_property
    def expert_layers(self) -> tuple[tuple[int, int], ...]:
        """The layers that have experts, counted from 0, each with the number of its experts."""
        parts = enumerate(layer.feed_forward for layer in self.layers)
        return tuple((i, part.num_experts) for i, part in parts if isinstance(part, MoeConfig))

    @property
    def kept_kv_heads(self) -> int:
        """KV heads that every layer keeps of a token: the least common multiple of the layers' numbers, since pages of
        one size serve all; a layer with fewer keeps copies (`ModelShape`)."""
        return math.lcm(*(mixer.num_kv_heads for mixer in self.attentions))

    @cached_property
    def cache_groups(self) -> CacheGroups:
        """Which layers share page tables, and where in the KV pool each layer's keys and values lie."""
        specs = [None if layer.attention is None else layer.attention.cache for layer in self.layers]
        heads = self.kept_kv_heads
        return CacheGroups.of([None if spec is None else dataclasses.replace(spec, kv_heads=heads) for spec in specs])

    @property
    def longrope_border(self) -> int | None:
        """Sequence length (tokens) beyond which the long factors apply, or None without longrope."""
        borders = {r.original_max_position_embeddings for r in self.ropes if r.kind == "longrope"}
        require(len(borders) <= 1, f"longrope with several original_max_position_embeddings: {sorted(borders)}")
        return borders.pop() if borders else None

    @property
    def dynamic_border(self) -> int | None:
        """Trained length (tokens) of dynamic RoPE, which equals the default up to it, or None without dynamic RoPE.

        Beyond it the frequencies would depend on how far a sequence has grown, so a longer max_model_len is refused.
        """
        borders = {r.original_max_position_embeddings for r in self.ropes if r.kind == "dynamic"}
        return min(borders) if borders else None

    @property
    def longest(self) -> int:
        """The most tokens of a sequence, prompt and output. Names and rules are those of vLLM 0.32.

        Linear RoPE reaches `factor` times as far as max_position_embeddings says. For all other kinds that number is
        the stretched one already, and so it is for Gemma 3's linear RoPE. Dynamic RoPE ends at the trained length.
        """
        return self._stretched(self.context_length or self.max_position_embeddings)

    @property
    def usual(self) -> int:
        """The length to serve where nobody asks for another: `longest`, or less if the tokenizer's files say so."""
        base = self.context_length or self.max_position_embeddings
        return self._stretched(min(base, self.tokenizer_length or base))

    def _stretched(self, tokens: int) -> int:
        factor = (
            1.0 if self.linear_rope_counted else max((r.factor for r in self.ropes if r.kind == "linear"), default=1.0)
        )
        length = max(1, int(tokens * factor))
        return length if self.dynamic_border is None else min(length, self.dynamic_border)

    def to_dict(self) -> dict[str, Any]:
        """For JSON. What most models do not have is left out, and so is what is read anew of other files."""
        data = dataclasses.asdict(self)
        del data["tokenizer_length"]
        for layer, described in zip(self.layers, data["layers"], strict=True):
            if layer.ranks == WHOLE:
                del described["ranks"]
        return {name: value for name, value in data.items() if name not in _RARE or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict` (JSON turns tuples into lists). Raises ConfigError on unknown or missing fields.

        Reads the older form, too, where all layers had the sizes that stood beside them (`_older`).
        """
        try:
            values = _older(data) if "num_layers" in data else dict(data)
            known = {f.name for f in dataclasses.fields(cls)}
            unknown = sorted(set(values) - known)
            require(not unknown, f"model config has unknown fields {unknown}")
            values["layers"] = tuple(_layer(**layer) for layer in values["layers"])
            values["ropes"] = tuple(RopeConfig(**_with_tuples(rope)) for rope in data["ropes"])
            values["eos_token_ids"] = tuple(data.get("eos_token_ids", ()))
            values["notes"] = tuple(data.get("notes", ()))
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"model config is incomplete or malformed: {error}") from error


def _layer(
    mixer: dict[str, Any] | None, feed_forward: dict[str, Any] | None, ranks: dict[str, Any] | None = None
) -> LayerConfig:
    return LayerConfig(_mixer(mixer), _feed_forward(feed_forward), WHOLE if ranks is None else RankConfig(**ranks))


def _mixer(values: dict[str, Any] | None) -> AttentionConfig | LinearConfig | None:
    if values is None:
        return None
    return LinearConfig(**values) if values.keys() == _LINEAR else AttentionConfig(**values)


def _feed_forward(values: dict[str, Any] | None) -> FeedForward | LinearConfig | None:
    if values is None:
        return None
    if values.keys() == _LINEAR:
        return LinearConfig(**values)
    if "num_experts" not in values:
        return MlpConfig(**values)
    shared = values.get("shared")
    parts = {"router": RouterConfig(**values["router"]), "expert": MlpConfig(**values["expert"])}
    return MoeConfig(**{**values, **parts, "shared": None if shared is None else MlpConfig(**shared)})


_LINEAR = {field.name for field in dataclasses.fields(LinearConfig)}


# Fields that stood beside the layers in the older form -> their names in each layer's parts now.
_OLDER_MIXER = {
    "num_heads": "num_heads",
    "num_kv_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "query_scale": "scale",
    "qk_norm": "qk_norm",
    "attention_softcap": "soft_cap",
    "qkv_bias": "qkv_bias",
    "attention_out_bias": "out_bias",
}
_OLDER_FEED_FORWARD = {"intermediate_size": "intermediate_size", "activation": "activation", "mlp_bias": "bias"}


def _older(data: dict[str, Any]) -> dict[str, Any]:
    """A config in the older form, whose layers had only `sliding_window` and `rope` of their own, in today's."""
    values = dict(data)
    count, layers = values.pop("num_layers"), values["layers"]
    require(len(layers) == count, f"{len(layers)} layer entries for {count} layers")
    mixer = {new: values.pop(old) for old, new in _OLDER_MIXER.items() if old in values}
    feed_forward = {new: values.pop(old) for old, new in _OLDER_FEED_FORWARD.items() if old in values}
    values["layers"] = [{"mixer": {**mixer, **layer}, "feed_forward": feed_forward} for layer in layers]
    return values


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
