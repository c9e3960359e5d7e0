"""What the network is (`ModelConfig`) and how it runs (`RuntimeConfig`): frozen, validated, standard library only.

`ModelConfig` speaks one language for all families; `jaxinfer.models.registry` translates Hugging Face configs into it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from jaxinfer.cache_groups import CacheGroups, CacheSpec

RopeKind = Literal["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
Activation = Literal["silu", "gelu", "gelu_tanh"]
QkNorm = Literal["none", "head", "whole"]
DTypeName = Literal["float32", "bfloat16"]


class ConfigError(ValueError):
    """A configuration that cannot be served; the message names the field, the value and what is allowed."""


class UnsupportedModelError(ConfigError):
    """A well-formed model that needs something this project does not have; names it and what there is instead."""


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class RopeConfig:
    """One rotary embedding. Lengths in tokens, `rotary_dim` in elements of the head (partial rotary: < head_dim).

    Fields beyond `theta` and `rotary_dim` are read only by the kinds that define them (names as in Hugging Face
    `rope_parameters`). `attention_factor` multiplies cos and sin; it is always resolved by the registry, never None.
    """

    kind: RopeKind
    theta: float
    rotary_dim: int
    factor: float = 1.0
    attention_factor: float = 1.0  # for longrope: the one that goes with the factors in use (equal for both)
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: round the correction range to whole dimensions
    original_max_position_embeddings: int = 0  # llama3, yarn, longrope, dynamic: the trained length
    short_factor: tuple[float, ...] = ()  # longrope, up to original_max_position_embeddings
    long_factor: tuple[float, ...] = ()  # longrope, beyond it

    def __post_init__(self) -> None:
        require(self.theta > 0, f"rope theta is {self.theta}; it must be positive")
        require(
            self.rotary_dim > 0 and self.rotary_dim % 2 == 0,
            f"rotary_dim is {self.rotary_dim}; it must be even and positive",
        )
        require(self.factor > 0, f"rope factor is {self.factor}; it must be positive")
        if self.kind in ("llama3", "yarn", "longrope", "dynamic"):
            require(
                self.original_max_position_embeddings > 0,
                f"rope type {self.kind} needs original_max_position_embeddings > 0",
            )
        if self.kind == "longrope":
            for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
                require(
                    len(factors) == self.rotary_dim // 2,
                    f"longrope {name} has {len(factors)} values; rotary_dim / 2 = {self.rotary_dim // 2} are needed",
                )


@dataclass(frozen=True)
class LayerConfig:
    """What differs between layers. `rope` indexes `ModelConfig.ropes`, None means no positional rotation (NoPE)."""

    sliding_window: int | None = None  # tokens a query sees, itself included
    rope: int | None = 0


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
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position_embeddings: int
    layers: tuple[LayerConfig, ...]
    ropes: tuple[RopeConfig, ...]
    dtype: DTypeName = "bfloat16"  # the checkpoint's; "auto" in RuntimeConfig means this one
    norm_eps: float = 1e-6
    norm_offset: float = 0.0
    norm_scale_float32: bool = False  # True: scale in float32, then round (Gemma, OLMo 2); False: round, then scale
    pre_norm: bool = True
    post_norm: bool = False
    activation: Activation = "silu"
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: QkNorm = "none"
    query_scale: float = 0.0  # multiplies q.k; the registry always sets it (usually head_dim ** -0.5)
    attention_softcap: float | None = None
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
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            value = getattr(self, name)
            require(isinstance(value, int) and value > 0, f"{name} is {value!r}; it must be a positive integer")
        require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}",
        )
        require(len(self.layers) == self.num_layers, f"{len(self.layers)} layer entries for {self.num_layers} layers")
        for index, layer in enumerate(self.layers):
            require(
                layer.rope is None or 0 <= layer.rope < len(self.ropes),
                f"layer {index} names rope {layer.rope}; there are {len(self.ropes)}",
            )
            require(
                layer.sliding_window is None or layer.sliding_window > 0,
                f"layer {index}: sliding_window {layer.sliding_window} must be positive",
            )
        for rope in self.ropes:
            require(rope.rotary_dim <= self.head_dim, f"rotary_dim {rope.rotary_dim} exceeds head_dim {self.head_dim}")
        require(
            math.isfinite(self.query_scale) and self.query_scale > 0,
            f"query_scale is {self.query_scale}; it must be positive",
        )
        require(self.pre_norm or self.post_norm, "a layer needs pre_norm, post_norm or both")

    @property
    def group_size(self) -> int:
        """Query heads per KV head."""
        return self.num_heads // self.num_kv_heads

    @cached_property
    def cache_groups(self) -> CacheGroups:
        """Which layers share page tables, and where in the KV pool each layer's keys and values lie."""
        return CacheGroups.of(
            [CacheSpec(self.num_kv_heads, self.head_dim, layer.sliding_window) for layer in self.layers]
        )

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
        return {name: value for name, value in data.items() if name not in _RARE or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ModelConfig:
        """Inverse of `to_dict` (JSON turns tuples into lists). Raises ConfigError on unknown or missing fields."""
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(data) - known)
        require(not unknown, f"model config has unknown fields {unknown}")
        values = dict(data)
        try:
            values["layers"] = tuple(LayerConfig(**layer) for layer in data["layers"])
            values["ropes"] = tuple(RopeConfig(**_with_tuples(rope)) for rope in data["ropes"])
            values["eos_token_ids"] = tuple(data.get("eos_token_ids", ()))
            values["notes"] = tuple(data.get("notes", ()))
            return cls(**values)
        except (AttributeError, KeyError, TypeError) as error:
            raise ConfigError(f"model config is incomplete or malformed: {error}") from error


Dtype = Literal["auto", "float32", "bfloat16"]
KvCacheDtype = Literal["auto", "float32", "bfloat16", "int8", "fp8"]
Quantization = Literal["int8", "int4", "fp8", "w8a8", "fp8-dynamic"]

# What an engine chooses where the config says None, by platform; "accelerator" is every other than those named. On a
# CPU products are compute-bound from about 128 rows on, so a larger step only makes decode rows wait longer, and each
# bucket less makes a cold start 1.5 s shorter.
MAX_NUM_SEQS = {"cpu": 64, "accelerator": 256}
MAX_NUM_BATCHED_TOKENS = {"cpu": 256, "accelerator": 2048}


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model runs. None means "let the engine choose" and it says what it chose. Names are vLLM's where equal.

    quantization: few bits for the layers' matrices, rounded at load: int8 and fp8 have a scale for each output, int4
    one for groups of 32 to 128 inputs; w8a8 and fp8-dynamic round activations too, token by token. On a CPU all of them
    become int8 by int8.
    max_model_len: longest prompt + output in tokens. max_num_seqs: rows of a step. max_num_batched_tokens: tokens of
    a step. max_logprobs: the most alternatives that a request may ask for at a position, -1 for the whole vocabulary;
    every step makes room for that many. kv_cache_dtype: what keys and values are kept in; auto is the model's dtype;
    int8 and fp8 (e4m3) have a scale for each token and head, found when it is written. num_pages: size of the KV
    pool, instead of measuring memory. gpu_memory_utilization: share of an accelerator's memory to use.
    batch_invariant: a request's bytes do not depend on who shares the batch (small steps are padded to 8 tokens).
    attention_backend: a backend by name, which must be able to serve this device. device: "cpu", "gpu" or "tpu"; None
    takes JAX's default.
    """

    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_logprobs: int = 20
    kv_cache_dtype: KvCacheDtype = "auto"
    page_size: int = 64
    num_pages: int | None = None
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    batch_invariant: bool = True
    priority_ageing_seconds: float = 30.0
    attention_backend: str | None = None
    device: str | None = None
    seed: int = 0
    compilation_cache_dir: str | None = "~/.cache/jaxinfer/xla"  # None: no persistent cache

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_pages"):
            value = getattr(self, name)
            require(
                value is None or (_is_int(value) and value > 0), f"{name} is {value!r}; it must be a positive integer"
            )
        for name in ("page_size", "tensor_parallel_size"):
            value = getattr(self, name)
            require(_is_int(value) and value > 0, f"{name} is {value!r}; it must be a positive integer")
        require(
            _is_int(self.max_logprobs) and (self.max_logprobs > 0 or self.max_logprobs == -1),
            f"max_logprobs is {self.max_logprobs!r}; it must be a positive integer, or -1 for the whole vocabulary",
        )
        require(
            self.dtype in ("auto", "float32", "bfloat16"),
            f"dtype is {self.dtype!r}; it must be auto, float32 or bfloat16",
        )
        require(
            self.quantization is None or self.quantization in get_args(Quantization),
            f"quantization is {self.quantization!r}; it must be one of {', '.join(get_args(Quantization))}, or None",
        )
        require(
            self.kv_cache_dtype in get_args(KvCacheDtype),
            f"kv_cache_dtype is {self.kv_cache_dtype!r}; it must be one of {', '.join(get_args(KvCacheDtype))}",
        )
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1",
        )
        require(
            self.device in (None, "cpu", "gpu", "tpu"), f"device is {self.device!r}; it must be cpu, gpu, tpu or None"
        )
        require(  # endless ageing times a priority of 0 is no number
            0 < self.priority_ageing_seconds < math.inf,
            f"priority_ageing_seconds is {self.priority_ageing_seconds}; it must be positive and finite",
        )
        if self.max_num_seqs is not None and self.max_num_batched_tokens is not None:
            require(
                self.max_num_batched_tokens >= self.max_num_seqs,
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least max_num_seqs "
                f"{self.max_num_seqs}, so that every running request advances in every step",
            )


def context_length(model: ModelConfig, runtime: RuntimeConfig) -> int:
    """The longest prompt and output together, tokens, before a KV pool that holds fewer shortens it.

    Raises ConfigError for a `max_model_len` that the model was not trained for.
    """
    wanted, longest = runtime.max_model_len, model.longest
    if wanted is None:
        return model.usual
    base = model.context_length or model.max_position_embeddings
    what = "max_position_embeddings" if model.context_length is None else "shortest length in config.json"
    stretched = f", {base}, times the factor of its linear RoPE," if longest > base else ""
    why = "; dynamic RoPE is served inside the trained length only" if model.dynamic_border is not None else ""
    allowed = f"the model's {what}{stretched} allows at most {longest}{why}"
    require(wanted <= longest, f"max_model_len is {wanted}; {allowed}")
    return wanted


def _with_tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
