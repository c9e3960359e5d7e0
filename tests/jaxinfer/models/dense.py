"""A decoder without engine: Hugging Face tensors to its parameters, and plain causal attention instead of pages.

Written against the documented parameter tree, on its own, so that it can disagree with the checkpoint loader.
Shapes: T tokens, N query heads, K KV heads before and K' after repetition, G = N / K, H head_dim, D model.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxinfer.config import LinearConfig, ModelConfig, MoeConfig
from jaxinfer.models.context import Attend, StepContext, by_table
from jaxinfer.models.decoder import abstract_decoder
from jaxinfer.models.shape import ModelShape

Path = tuple[str | int, ...]
Tensor = TypeVar("Tensor")  # an array, or what is said of one
MIN_TOKENS = 8  # below this XLA:CPU reduces rows in another order


def hf_parameters(config: ModelConfig, tensors: Mapping[str, np.ndarray]) -> dict[Path, np.ndarray]:
    """{parameter path: array} for one device; uses up every tensor and fails if one is missing or left over."""
    left = text_tensors(tensors)
    out: dict[Path, np.ndarray] = {("embed", "weight"): left.pop("model.embed_tokens.weight")}
    out["final_norm", "weight"] = left.pop("model.norm.weight")
    if not config.tie_word_embeddings:
        out["lm_head", "weight"] = left.pop("lm_head.weight")
    for i, layer in enumerate(config.layers):
        hf = f"model.layers.{i}."
        found: dict[Path, np.ndarray] = {}
        if isinstance(layer.mixer, LinearConfig):
            found["attention", "linear", "weight"] = left.pop(f"{hf}self_attn.linear_attn.weight")
        elif layer.mixer is not None:
            found |= _attention(layer.mixer, layer.ranks, f"{hf}self_attn.", left)
        if isinstance(layer.feed_forward, LinearConfig):
            found["mlp", "linear", "weight"] = left.pop(f"{hf}mlp.linear_mlp.weight")
        elif isinstance(layer.feed_forward, MoeConfig):
            found |= {("moe", *path): array for path, array in moe_parameters(layer.feed_forward, left, hf).items()}
        elif layer.feed_forward is not None:
            found |= _mlp(layer.feed_forward, layer.ranks, f"{hf}mlp.", left)
        for ours, theirs in _norm_names(config).items():
            if (layer.mixer if ours.startswith("attention") else layer.feed_forward) is not None:
                found[ours, "weight"] = left.pop(f"{hf}{theirs}.weight")
        out |= {("layers", i, *path): array for path, array in found.items()}
    assert not left, f"tensors that no parameter takes: {sorted(left)}"
    return out


def _factors(hf: str, name: str, kinds: tuple[str, ...], rank: int | None, left: dict[str, np.ndarray]) -> Any:
    """{(kind): array} of one linear layer; ("inner", "weight") and ("outer", ...) where it has a rank."""
    if rank is None:
        return {(kind,): left.pop(f"{hf}{name}.{kind}") for kind in kinds}
    inner = {("inner", "weight"): left.pop(f"{hf}{name}.BLinear.weight")}
    assert inner["inner", "weight"].shape[0] == rank
    return inner | {("outer", kind): left.pop(f"{hf}{name}.ALinear.{kind}") for kind in kinds}


def _attention(mixer: Any, ranks: Any, hf: str, left: dict[str, np.ndarray]) -> dict[Path, np.ndarray]:
    heads, kv, head, group = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim, mixer.group_size
    out: dict[Path, np.ndarray] = {}
    kinds = ("weight", "bias") if mixer.qkv_bias else ("weight",)
    if ranks.q or ranks.k or ranks.v:
        for name, rows in (("q", (kv, group, head)), ("k", (kv, head)), ("v", (kv, head))):
            for path, array in _factors(hf, f"{name}_proj", kinds, getattr(ranks, name), left).items():
                shape = array.shape if path[0] == "inner" else (*rows, *array.shape[1:])
                out["attention", name, *path] = array.reshape(shape)
    else:
        for kind in kinds:
            fused = left.pop(f"{hf}qkv_proj.{kind}", None)
            if fused is None:
                fused = np.concatenate([left.pop(f"{hf}{n}_proj.{kind}") for n in "qkv"])
            q, k, v = np.split(fused, [heads * head, (heads + kv) * head])
            tail = fused.shape[1:]
            parts = (q.reshape(kv, group, head, *tail), k.reshape(kv, 1, head, *tail), v.reshape(kv, 1, head, *tail))
            out["attention", "qkv", kind] = np.concatenate(parts, axis=1)
    kinds = ("weight", "bias") if mixer.out_bias else ("weight",)
    for path, array in _factors(hf, "o_proj", kinds, ranks.out, left).items():
        whole = path in (("weight",), ("inner", "weight"))
        out["attention", "out", *path] = array.reshape(-1, kv, group, head) if whole else array
    if mixer.sinks:
        out["attention", "sinks"] = left.pop(f"{hf}sinks").reshape(kv, group)
    if mixer.qk_norm != "none":
        shapes = ((kv, group, head), (kv, head)) if mixer.qk_norm == "whole" else ((head,), (head,))
        theirs = ("query_layernorm", "key_layernorm") if mixer.qk_norm_after_rope else ("q_norm", "k_norm")
        for name, source, norm_shape in zip(("q_norm", "k_norm"), theirs, shapes, strict=True):
            out["attention", name, "weight"] = left.pop(f"{hf}{source}.weight").reshape(norm_shape)
    return out


def _mlp(mlp: Any, ranks: Any, hf: str, left: dict[str, np.ndarray]) -> dict[Path, np.ndarray]:
    kinds, out = ("weight", "bias") if mlp.bias else ("weight",), {}
    if mlp.gated and not (ranks.gate or ranks.up):
        for kind in kinds:
            fused = left.pop(f"{hf}gate_up_proj.{kind}", None)
            if fused is None:
                fused = np.concatenate([left.pop(f"{hf}{n}_proj.{kind}") for n in ("gate", "up")])
            out["mlp", "gate_up", kind] = fused.reshape(2, mlp.intermediate_size, *fused.shape[1:])
        names = ["down"]
    else:
        names = ["gate", "up", "down"] if mlp.gated else ["up", "down"]
    for name in names:
        for path, array in _factors(hf, f"{name}_proj", kinds, getattr(ranks, name), left).items():
            out["mlp", name, *path] = array
    for name in ("alpha_p", "alpha_n", "beta", "eps") if mlp.activation == "xielu" else ():
        out["mlp", "xielu", name] = left.pop(f"{hf}act_fn.{name}").reshape(1)
    return out


def moe_parameters(moe: MoeConfig, left: dict[str, np.ndarray], hf: str) -> dict[Path, np.ndarray]:
    """The experts of one layer, in whichever of the published spellings its tensors are."""

    def take(*endings: str) -> np.ndarray | None:
        return next((left.pop(hf + end) for end in endings if hf + end in left), None)

    routers = ("mlp.gate.weight", "block_sparse_moe.gate.weight", "block_sparse_moe.router.layer.weight")
    small = {
        ("router", "weight"): take(*routers, "mlp.router.weight"),
        ("router", "bias"): take("mlp.router.bias"),
        ("correction",): take("mlp.gate.e_score_correction_bias"),
        ("shared_gate", "weight"): take("mlp.shared_expert_gate.weight"),
        ("down", "bias"): take("mlp.experts.down_proj_bias"),
    }
    out: dict[Path, np.ndarray] = {path: array for path, array in small.items() if array is not None}
    if (both := take("block_sparse_moe.input_linear.weight")) is not None:  # gates above ups
        gate_up, down = (
            both.reshape(moe.num_experts, 2, -1, both.shape[2]),
            take("block_sparse_moe.output_linear.weight"),
        )
    elif (both := take("mlp.experts.gate_up_proj")) is not None:  # gates and ups in turns, inputs first
        gate_up = np.stack([both[:, :, 0::2], both[:, :, 1::2]], axis=1).swapaxes(2, 3)
        wide = take("mlp.experts.down_proj")
        assert wide is not None
        down = wide.swapaxes(1, 2)
        bias = left.pop(hf + "mlp.experts.gate_up_proj_bias")
        out["gate_up", "bias"] = np.stack([bias[:, 0::2], bias[:, 1::2]], axis=1)
    else:
        each = []
        for e in range(moe.num_experts):
            names = (("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2"))
            each.append(
                [take(f"mlp.experts.{e}.{a}.weight", f"block_sparse_moe.experts.{e}.{b}.weight") for a, b in names]
            )
        gate_up = np.stack([np.stack(three[:2]) for three in each])  # type: ignore[arg-type]
        down = np.stack([three[2] for three in each])  # type: ignore[arg-type]
    assert down is not None
    out["gate_up", "weight"], out["down", "weight"] = gate_up, down
    if moe.shared is not None:
        both = take("shared_mlp.input_linear.weight")
        if both is None:
            halves = [
                take(f"mlp.shared_expert.{n}.weight", f"mlp.shared_experts.{n}.weight")
                for n in ("gate_proj", "up_proj")
            ]
            both = np.concatenate(halves)  # type: ignore[arg-type]
        out["shared", "gate_up", "weight"] = both.reshape(2, -1, both.shape[1])
        names_down = ("shared_mlp.output_linear.weight", "mlp.shared_expert.down_proj.weight")
        shared_down = take(*names_down, "mlp.shared_experts.down_proj.weight")
        assert shared_down is not None
        out["shared", "down", "weight"] = shared_down
    return out


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of the language model, named as if it were alone."""
    inner = "model.language_model."
    if not any(name.startswith(inner) for name in tensors):
        return dict(tensors)
    kept = {name: array for name, array in tensors.items() if name.startswith((inner, "lm_head."))}
    return {name.replace(inner, "model."): array for name, array in kept.items()}


def _norm_names(config: ModelConfig) -> dict[str, str]:
    if config.architecture == "ApertusForCausalLM":
        return {"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"}
    if not config.post_norm:
        return {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
    post = {"attention_post_norm": "post_attention_layernorm", "mlp_post_norm": "post_feedforward_layernorm"}
    if not config.pre_norm:
        return post
    return {"attention_norm": "input_layernorm", "mlp_norm": "pre_feedforward_layernorm"} | post


def fit(path: Path, array: np.ndarray, config: ModelConfig, shape: ModelShape) -> np.ndarray:
    """One parameter for one device -> for `shape.tp` devices: KV heads repeated, vocabulary and MLP width padded."""
    layer = int(path[1]) if path[0] == "layers" else 0
    mixer, wanted = config.layers[layer].attention, shape.layers[layer].kv_heads
    group, copies = (1, 1) if mixer is None else (mixer.group_size, wanted // mixer.num_kv_heads)

    def spread(heads: np.ndarray, axis: int) -> np.ndarray:
        """(..., K, G, ...) with K at `axis` -> (..., K', G', ...): the same N query heads, cut into smaller groups."""
        before, after = heads.shape[:axis], heads.shape[axis + 2 :]
        return heads.reshape(*before, wanted, group // copies, *after)

    def padded(axis: int, size: int) -> np.ndarray:
        widths = [(0, size - n if a == axis else 0) for a, n in enumerate(array.shape)]
        return np.pad(array, widths)

    match path:
        case ("embed" | "lm_head", _):
            return padded(0, shape.vocab)
        case (_, _, "attention", "qkv", _):
            keys_values = np.repeat(array[:, group:], copies, axis=0)
            return np.concatenate((spread(array[:, :group], 0), keys_values), axis=1)
        case (_, _, "attention", "out", "weight") | (_, _, "attention", "out", "inner", _):
            return spread(array, 1)
        case (_, _, "attention", "q", "weight" | "bias") | (_, _, "attention", "q", "outer", _):
            return spread(array, 0)
        case (_, _, "attention", "k" | "v", "weight" | "bias") | (_, _, "attention", "k" | "v", "outer", _):
            return np.repeat(array, copies, axis=0)
        case (_, _, "attention", "q_norm", _) if array.ndim == 3:
            return spread(array, 0)
        case (_, _, "attention", "k_norm", _) if array.ndim == 2:
            return np.repeat(array, copies, axis=0)
        case (_, _, "mlp", "gate_up", _):
            return padded(1, shape.layers[layer].mlp)
        case (_, _, "mlp", "gate" | "up", "weight" | "bias") | (_, _, "mlp", "gate" | "up", "outer", _):
            return padded(0, shape.layers[layer].mlp)
        case (_, _, "mlp", "down", "weight") | (_, _, "mlp", "down", "inner", _):
            return padded(1, shape.layers[layer].mlp)
        case (_, _, "attention", "sinks"):
            return spread(array, 0)
        case (_, _, "moe", "gate_up", _) | (_, _, "moe", "down", "weight"):
            return padded(2, shape.layers[layer].mlp)
        case (_, _, "moe", "shared", _, "weight"):
            return padded(1, shape.layers[layer].shared)
    return array


class DenseModel:
    """A decoder with its weights. `place` (variable, array) makes a parameter's array."""

    def __init__(
        self,
        config: ModelConfig,
        tensors: Mapping[str, np.ndarray],
        *,
        dtype: Any = jnp.float32,
        tp: int = 1,
        ep: int = 1,
        place: Any = lambda variable, array: jnp.asarray(array, variable.dtype),
    ) -> None:
        self.config = config
        self.shape = ModelShape.of(config, tp, ep)
        self.graphdef, abstract = abstract_decoder(config, self.shape, dtype)
        given = {path: fit(path, a, config, self.shape) for path, a in hf_parameters(config, tensors).items()}
        wanted = dict(nnx.to_flat_state(abstract))
        assert {p: v.shape for p, v in wanted.items()} == {p: a.shape for p, a in given.items()}
        loaded = [(path, variable.replace(place(variable, given[path]))) for path, variable in wanted.items()]
        self.params = nnx.to_pure_dict(nnx.from_flat_state(loaded))

    def apply(self, params: Any, batch: Batch) -> jax.Array:
        """-> (T, V') logits of every token; pure, for jit."""
        return self.counted(params, batch)[0]

    def counted(self, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """The same, and how many tokens each expert has had, padding included; None in a model without."""
        decoder = nnx.merge(self.graphdef, params)
        groups = self.config.cache_groups
        attention = by_table([dense_attention(batch.sequences)] * groups.num_tables)
        places = batch.positions, batch.sequences, batch.rope_variants
        context = StepContext.of(self.config.ropes, *places, attention, multiply_experts=expert_of_each_row)
        experts = [count for _, count in self.config.expert_layers]
        none = jnp.zeros((len(experts), max(experts)), jnp.uint32) if experts else None
        cache = [(jnp.zeros(0), jnp.zeros(0))] * groups.depth
        hidden, _, tokens = decoder.counted_states(batch.token_ids, context, cache, none)
        return decoder.logits(hidden), tokens

    def logits(self, prompts: Sequence[Sequence[int]], run: Any = None) -> list[np.ndarray]:
        """(len(prompt), V) float32 logits of each prompt, all computed as one batch; `run` stands in for `apply`."""
        batch = Batch.of(prompts, self.config.longrope_border)
        logits = np.asarray((run or self.apply)(self.params, batch))[:, : self.config.vocab_size]
        return np.split(logits[: sum(map(len, prompts))], np.cumsum([len(p) for p in prompts])[:-1])


@jax.tree_util.register_dataclass
@dataclass
class Batch:
    """Whole sequences one after the other, each array (T,) int32; `sequences` numbers them, padding is number -1."""

    token_ids: jax.Array
    positions: jax.Array
    rope_variants: jax.Array
    sequences: jax.Array

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], border: int | None) -> Batch:
        padding = -sum(map(len, prompts)) % MIN_TOKENS

        def flat(rows: list[list[int]], pad: int) -> jax.Array:
            return jnp.asarray(np.array([*itertools.chain(*rows), *[pad] * padding], np.int32))

        return cls(
            token_ids=flat([list(prompt) for prompt in prompts], 0),
            positions=flat([list(range(len(prompt))) for prompt in prompts], 0),
            rope_variants=flat([[int(border is not None and len(p) > border)] * len(p) for p in prompts], 0),
            sequences=flat([[i] * len(prompt) for i, prompt in enumerate(prompts)], -1),
        )


def expert_of_each_row(x: jax.Array, weight: Any, group_sizes: jax.Array) -> jax.Array:
    """The product with experts in one line, every row's weights gathered: nothing that a loop would compile."""
    ends = jnp.cumsum(group_sizes)
    rows = jnp.arange(x.shape[0])
    expert = jnp.minimum(jnp.sum(rows[:, None] >= ends, axis=1), weight.shape[0] - 1)
    y = jnp.einsum("ri,r...i->r...", x, weight[expert], precision="highest", preferred_element_type=jnp.float32)
    return jnp.where((rows < ends[-1]).reshape(-1, *(1,) * (y.ndim - 1)), y, 0.0)


def dense_attention(sequences: jax.Array) -> Attend:
    """An `attend` that looks at all keys of the batch and masks those of other sequences and of the future."""

    def attend(
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        kv_layer: Any,
        *,
        sliding_window: int | None,
        soft_cap: float | None,
        scale: float,
        sinks: jax.Array | None = None,
    ) -> tuple[jax.Array, Any]:
        sinks = jnp.full(q.shape[1], -jnp.inf) if sinks is None else sinks
        return _attend(q, k, v, sequences, sinks, sliding_window, soft_cap, scale), kv_layer

    return attend


@partial(jax.jit, static_argnums=(5, 6, 7))
def _attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    sequences: jax.Array,
    sinks: jax.Array,
    sliding_window: int | None,
    soft_cap: float | None,
    scale: float,
) -> jax.Array:
    """In float32. q (T, N, H); k, v (T, K', H); sinks (N,) -> (T, N, H)."""
    group = q.shape[1] // k.shape[1]
    q32, k32, v32 = (jnp.repeat(x.astype(jnp.float32), n, axis=1) for x, n in ((q, 1), (k, group), (v, group)))
    scores = jnp.einsum("tnh,snh->nts", q32, k32, precision="highest") * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    distance = jnp.arange(q.shape[0])[:, None] - jnp.arange(q.shape[0])[None, :]
    seen = (distance >= 0) & (sequences[:, None] == sequences[None, :])
    if sliding_window is not None:
        seen &= distance < sliding_window
    beside = jnp.broadcast_to(sinks.astype(jnp.float32)[:, None, None], (*scores.shape[:2], 1))
    all_scores = jnp.concatenate([jnp.where(seen, scores, -jnp.inf), beside], axis=-1)
    weights = jax.nn.softmax(all_scores, axis=-1)[..., :-1]
    return jnp.einsum("nts,snh->tnh", weights, v32, precision="highest").astype(q.dtype)


def relative_error(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """max|ours - theirs| / max|theirs| over all positions of all prompts."""
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    return difference / max(float(np.abs(b).max()) for b in theirs)
