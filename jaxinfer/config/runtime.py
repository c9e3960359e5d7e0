"""How a model runs."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import Literal, get_args

from jaxinfer.config.errors import is_int, require
from jaxinfer.config.field_types import check_field_types
from jaxinfer.config.model import ModelConfig
from jaxinfer.config.parallel import ParallelConfig

Dtype = Literal["auto", "float32", "bfloat16"]
KvCacheDtype = Literal["auto", "float32", "bfloat16", "int8", "fp8"]
Quantization = Literal["int8", "int4", "fp8", "w8a8", "fp8-dynamic", "mxfp4"]

# What an engine chooses where the config says None, by platform; "accelerator" is every other than those named. On a
# CPU products are compute-bound from about 128 rows on, so a larger step only makes decode rows wait longer, and each
# bucket less makes a cold start 1.5 s shorter.
MAX_NUM_SEQS = {"cpu": 64, "accelerator": 256}
MAX_NUM_BATCHED_TOKENS = {"cpu": 256, "accelerator": 2048}


@dataclass(frozen=True)
class RuntimeConfig:
    """How a model runs. None means "let the engine choose" and it says what it chose. Names are vLLM's where equal.

    quantization: of the layers' matrices, rounded at load: int8 and fp8 have a scale for each output, int4
    one for groups of 32 to 128 inputs, mxfp4 a power of two for blocks of 32; w8a8 and fp8-dynamic round activations
    too, token by token. On a CPU all of them but mxfp4 become int8 by int8.
    max_model_len: longest prompt + output in tokens. max_num_seqs: rows of a step. max_num_batched_tokens: tokens of
    a step. max_logprobs: the most alternatives that a request may ask for at a position, -1 for the whole vocabulary;
    every step makes room for that many. kv_cache_dtype: what keys and values are kept in; auto is the model's dtype;
    int8 and fp8 (e4m3) have a scale for each token and head, found when it is written. num_pages: size of the KV
    pool, instead of measuring memory. gpu_memory_utilization: share of an accelerator's memory to use.
    step_sizes: tokens of the compiled steps, instead of a ladder that the engine chooses; a step is padded to the next
    one. Where there is a single one, rows that draw are padded to the most, too.
    language_model_only: of a model of several modalities, run the language model alone; there is nothing else yet, so
    that it must be True.
    serve_while_warming: answer as soon as the smallest step is compiled, in small steps until all are.
    batch_invariant: a request's bytes do not depend on who shares the batch (small steps are padded to 8 tokens).
    expert_parallel_size: devices that experts are dealt to, each of them split over tensor_parallel_size; all else is
    split over the product of the two. enable_expert_parallel: all devices of tensor_parallel_size deal experts instead.
    attention_backend: a backend by name, which must be able to serve this device. self_test: whether kernels are tried
    in a process of their own before they are trusted: "auto" on accelerators, unless it is known how they did, "on"
    everywhere and anew, or "off".
    max_pinned_ratio: the share of the KV pages that pins of prefixes hold at most (0: nothing is pinned);
    max_pinned_ratio_per_tenant: the share of those that one tenant's pins do.
    cpu_kernels: what a CPU computes products and attention with: "xla", C++ kernels for an instruction set by name, or
    "auto". device: "cpu", "gpu" or "tpu"; None takes JAX's default.
    """

    dtype: Dtype = "auto"
    quantization: Quantization | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    step_sizes: tuple[int, ...] | None = None
    max_logprobs: int = 20
    kv_cache_dtype: KvCacheDtype = "auto"
    page_size: int = 64
    num_pages: int | None = None
    tensor_parallel_size: int = 1
    expert_parallel_size: int = 1
    enable_expert_parallel: bool = False
    gpu_memory_utilization: float = 0.9
    enable_prefix_caching: bool = True
    language_model_only: bool = True
    serve_while_warming: bool = False
    batch_invariant: bool = True
    priority_ageing_seconds: float = 30.0
    max_pinned_ratio: float = 0.5
    max_pinned_ratio_per_tenant: float = 0.5
    attention_backend: str | None = None
    self_test: Literal["auto", "on", "off"] = "auto"
    cpu_kernels: str = "auto"
    device: Literal["cpu", "gpu", "tpu"] | None = None
    seed: int | None = 0  # of the seeds that requests without one get; None: drawn
    compilation_cache_dir: str | PathLike[str] | None = "~/.cache/jaxinfer/xla"  # None: no persistent cache
    bundle: str | PathLike[str] | None = None  # executables of `jaxinfer compile`; a bundle is code

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "num_pages"):
            value = getattr(self, name)
            require(
                value is None or (is_int(value) and value > 0), f"{name} is {value!r}; it must be a positive integer"
            )
        for name in ("page_size", "tensor_parallel_size", "expert_parallel_size"):
            value = getattr(self, name)
            require(is_int(value) and value > 0, f"{name} is {value!r}; it must be a positive integer")
        require(
            is_int(self.max_logprobs) and (self.max_logprobs > 0 or self.max_logprobs == -1),
            f"max_logprobs is {self.max_logprobs!r}; it must be a positive integer, or -1 for the whole vocabulary",
        )
        require(
            self.quantization is None or self.quantization in get_args(Quantization),
            f"quantization is {self.quantization!r}; it must be one of {', '.join(get_args(Quantization))}, or None",
        )
        require(
            self.kv_cache_dtype in get_args(KvCacheDtype),
            f"kv_cache_dtype is {self.kv_cache_dtype!r}; it must be one of {', '.join(get_args(KvCacheDtype))}",
        )
        check_field_types(self)
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"gpu_memory_utilization is {self.gpu_memory_utilization}; it must be above 0 and at most 1",
        )
        require(
            self.priority_ageing_seconds > 0,  # endless ageing, which times a priority of 0 is no number, is no float
            f"priority_ageing_seconds is {self.priority_ageing_seconds}; it must be positive and finite",
        )
        for name in ("max_pinned_ratio", "max_pinned_ratio_per_tenant"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is {value}; it must be 0 to 1")
        if self.max_num_seqs is not None and self.max_num_batched_tokens is not None:
            require(
                self.max_num_batched_tokens >= self.max_num_seqs,
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least max_num_seqs "
                f"{self.max_num_seqs}, so that every running request advances in every step",
            )
        require(
            not self.enable_expert_parallel or self.expert_parallel_size == 1,
            f"expert_parallel_size is {self.expert_parallel_size}; with enable_expert_parallel it must be 1: experts "
            "are dealt to the devices of tensor_parallel_size",
        )
        require(
            self.language_model_only,
            "language_model_only is False (--no-language-model-only); it must be True: no vision or audio tower is "
            "supported, the language model of a checkpoint is served alone",
        )
        self._check_step_sizes()

    def weights_dtype(self, stored: str) -> str:
        """The type that weights get; stored: the checkpoint's."""
        return stored if self.dtype == "auto" else self.dtype

    def pages_dtype(self, weights: str) -> str:
        """The type that keys and values are kept in, by NumPy's name; weights: theirs."""
        return {"auto": weights, "fp8": "float8_e4m3fn"}.get(self.kv_cache_dtype, self.kv_cache_dtype)

    def _check_step_sizes(self) -> None:
        """Steps of the most tokens must be among them."""
        if self.step_sizes is None:
            return
        require(
            bool(self.step_sizes) and all(is_int(size) and size > 0 for size in self.step_sizes),
            f"step_sizes is {self.step_sizes!r}; it must have positive integers",
        )
        most = self.max_num_batched_tokens
        require(
            most is not None and max(self.step_sizes) >= most,
            f"step_sizes is {self.step_sizes!r}; the largest must be at least max_num_batched_tokens, which must be "
            f"given and is {most}",
        )

    @property
    def parallel(self) -> ParallelConfig:
        """The mesh that these options ask for."""
        if self.enable_expert_parallel:
            return ParallelConfig(tensor=1, expert=self.tensor_parallel_size)
        return ParallelConfig(tensor=self.tensor_parallel_size, expert=self.expert_parallel_size)


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
