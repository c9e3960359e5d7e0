"""The parameter tree is the documented one; hidden states do not depend on the rest of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxinfer.config import AttentionConfig, ConfigError, LayerConfig, MlpConfig, ModelConfig, RopeConfig
from jaxinfer.models.context import Attend, StepContext, by_table
from jaxinfer.models.decoder import Decoder, abstract_decoder
from jaxinfer.models.parameters import facts_of
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import MATRICES, input_axes, input_sizes, matrices_of
from jaxinfer.sharding import MODEL_AXES, make_mesh, partition_spec
from tests.jaxinfer.models.layer_changes import change_layers

Table = dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]]


ATTENTION = AttentionConfig(6, 3, 8, scale=0.3)
FULL = LayerConfig(ATTENTION, MlpConfig(31))
WINDOW = LayerConfig(dataclasses.replace(ATTENTION, sliding_window=5, rope=None), MlpConfig(31))


def model(
    *, mixer: dict[str, Any] | None = None, feed_forward: dict[str, Any] | None = None, **changes: Any
) -> ModelConfig:
    """Odd sizes: 6 query heads on 3 KV heads, width 31, vocabulary 37."""
    config = ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=37, hidden_size=24, max_position_embeddings=64,
        layers=(FULL, WINDOW), ropes=(RopeConfig("default", 1e4, 8),),
    )  # fmt: skip
    return change_layers(dataclasses.replace(config, **changes), mixer=mixer, feed_forward=feed_forward)


def table(config: ModelConfig, tp: int, k: int, g: int, v: int, f: int) -> Table:
    """The documented tree: K' = k, G' = g, V' = v, F' = f."""
    d, h = config.hidden_size, ATTENTION.head_dim
    out: Table = {"embed.weight": ((v, d), ("vocab_in", "embed")), "final_norm.weight": ((d,), ("embed",))}
    if not config.tie_word_embeddings:
        out["lm_head.weight"] = ((v, d), ("vocab_out", "embed"))
    for i, described in enumerate(config.layers):
        mixer, mlp = described.mixer, described.feed_forward
        layer: Table = {
            "attention.qkv.weight": ((k, g + 2, h, d), ("kv_heads", "q_group", "head", "embed")),
            "attention.out.weight": ((d, k, g, h), ("embed", "kv_heads", "q_group", "head")),
            "mlp.down.weight": ((d, f), ("embed", "mlp")),
        }
        if mlp.gated:
            layer["mlp.gate_up.weight"] = ((2, f, d), ("gate_up", "mlp", "embed"))
        else:
            layer["mlp.up.weight"] = ((f, d), ("mlp", "embed"))
        if mixer.qkv_bias:
            layer["attention.qkv.bias"] = ((k, g + 2, h), ("kv_heads", "q_group", "head"))
        if mixer.out_bias:
            layer["attention.out.bias"] = ((d,), ("embed",))
        if mlp.bias:
            first = (
                {"mlp.gate_up.bias": ((2, f), ("gate_up", "mlp"))} if mlp.gated else {"mlp.up.bias": ((f,), ("mlp",))}
            )
            layer |= {"mlp.down.bias": ((d,), ("embed",))} | first
        if mlp.activation == "xielu":
            layer |= {f"mlp.xielu.{name}": ((1,), (None,)) for name in ("alpha_p", "alpha_n", "beta", "eps")}
        if mixer.qk_norm == "head":
            layer |= {f"attention.{n}_norm.weight": ((h,), ("head",)) for n in "qk"}
        if mixer.qk_norm == "whole":
            layer["attention.q_norm.weight"] = ((k, g, h), ("kv_heads", "q_group", "head"))
            layer["attention.k_norm.weight"] = ((k, h), ("kv_heads", "head"))
        norms = ["attention_norm", "mlp_norm"] * config.pre_norm
        norms += ["attention_post_norm", "mlp_post_norm"] * config.post_norm
        layer |= {f"{name}.weight": ((d,), ("embed",)) for name in norms}
        out |= {f"layers.{i}.{name}": entry for name, entry in layer.items()}
    return out


VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "biases": {"mixer": {"qkv_bias": True, "out_bias": True}, "feed_forward": {"bias": True}},
    "qwen2": {"mixer": {"qkv_bias": True}, "tie_word_embeddings": True},
    "gemma3": {"mixer": {"qk_norm": "head"}, "post_norm": True, "norm_offset": 1.0, "tie_word_embeddings": True},
    "olmo2": {"mixer": {"qk_norm": "whole"}, "pre_norm": False, "post_norm": True},
    "arcee": {"feed_forward": {"gated": False, "activation": "relu2", "bias": True}},
    "apertus": {"feed_forward": {"gated": False, "activation": "xielu"}, "mixer": {"qk_norm": "head"}},
}
SHAPES = {1: (3, 2, 37, 31), 3: (3, 2, 39, 33), 6: (6, 1, 42, 36)}  # tp: K', G', V', F'


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_tree(variant: str, dtype: str) -> None:
    config = model(**VARIANTS[variant])
    for tp, sizes in SHAPES.items():
        _, state = abstract_decoder(config, ModelShape.of(config, tp), jnp.dtype(dtype))
        flat = nnx.to_flat_state(state)
        found = {".".join(map(str, path)): (leaf.shape, facts_of(leaf).axes) for path, leaf in flat}
        assert found == table(config, tp, *sizes)
        for path, leaf in flat:
            assert isinstance(leaf.get_value(), jax.ShapeDtypeStruct), f"{path} holds an array"
            assert leaf.dtype == jnp.dtype(dtype)
            spec = partition_spec(facts_of(leaf).axes)
            split = [size for size, axis in zip(leaf.shape, spec, strict=True) if axis == MODEL_AXES]
            assert all(size % tp == 0 for size in split), f"{path} cannot be split {tp} ways"


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_of_few_bits_are_those_that_the_parameters_name(variant: str) -> None:
    """The table for those who plan without a decoder: the same matrices, input axes and sizes."""
    config = model(**VARIANTS[variant])
    _, state = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"))
    told = {}
    for path, leaf in nnx.to_flat_state(state):
        dotted, facts = ".".join(map(str, path)), facts_of(leaf)
        assert input_axes(dotted) == (facts.inputs if facts.quantizable else None)
        if facts.inputs is not None and facts.quantizable:
            told[dotted.split(".", 2)[2].removesuffix(".weight")] = facts.axes[-facts.inputs :]
            assert input_sizes(dotted, config) == leaf.shape[-facts.inputs :]
    assert told == {end: MATRICES[end] for end in matrices_of(config.layers[0])}


def test_tree_is_the_same_under_a_mesh() -> None:
    """Logical axis names are not mesh axis names: building under a mesh must not look them up there."""
    config = model()
    args = (config, ModelShape.of(config, 1), jnp.dtype("float32"))
    outside = abstract_decoder(*args)
    mesh = make_mesh()
    with jax.set_mesh(mesh):
        inside = abstract_decoder(*args)
    assert jax.tree.structure(inside[1]) == jax.tree.structure(outside[1])
    assert inside[0] == outside[0]


def echo(q: jax.Array, k: jax.Array, v: jax.Array, kv_layer: Any, **_: Any) -> tuple[jax.Array, Any]:
    """Attention of each token to itself alone, with all of q, k and v in the result."""
    group = q.shape[1] // k.shape[1]
    return (q + jnp.repeat(k * v, group, axis=1)).astype(q.dtype), kv_layer


Run = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def runner(config: ModelConfig, dtype: str) -> Run:
    """A jitted function (token ids, positions) -> (hidden, logits) of a decoder with random parameters."""
    graphdef, abstract = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype(dtype))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), abstract)

    @jax.jit
    def run(params: Any, ids: jax.Array, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
        module = nnx.merge(graphdef, params)
        groups, none = config.cache_groups, jnp.zeros_like(ids)
        context = StepContext.of(config.ropes, positions, none, none, by_table([echo] * groups.num_tables))
        hidden, _ = module.hidden_states(ids, context, [(none, none)] * groups.depth)
        return hidden, module.logits(hidden)

    return lambda ids, positions: jax.tree.map(np.asarray, run(params, jnp.asarray(ids), jnp.asarray(positions)))


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.longer), "bfloat16"])
def test_a_token_does_not_see_the_size_of_its_batch(dtype: str) -> None:
    """Bit for bit: the same tokens in batches of 8, 16, 24 and 96, at other places, with other neighbours.

    Many batches, as another order of a sum shows in few tokens: bfloat16 rounds most of it away.
    """
    config = model(
        vocab_size=300, hidden_size=256, post_norm=True, ropes=(RopeConfig("default", 1e4, 64),),
        layers=(LayerConfig(AttentionConfig(4, 2, 64, scale=0.3, qk_norm="head"), MlpConfig(688)),),
    )  # fmt: skip
    run = runner(config, dtype)
    rng = np.random.default_rng(0)
    ids, positions = rng.integers(0, 300, 96).astype(np.int32), rng.integers(0, 64, 96).astype(np.int32)
    hidden, logits = run(ids, positions)
    assert np.isfinite(hidden.astype(np.float32)).all()
    for size, begin in ((24, 70), *((n, begin) for n in (8, 16) for begin in range(3, 80, n))):
        part = slice(begin, begin + size)
        some_hidden, some_logits = run(ids[part], positions[part])
        np.testing.assert_array_equal(some_hidden, hidden[part])
        np.testing.assert_array_equal(some_logits, logits[part])


def traced(config: ModelConfig, attention: list[Attend], cache: list[Any]) -> tuple[Any, Any]:
    """The shapes of (hidden, new cache) for nine tokens; runs the Python of the decoder, compiles nothing."""
    graphdef, abstract = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"))

    def run(params: Any, ids: jax.Array, cache: list[Any]) -> tuple[Any, Any]:
        context = StepContext.of(config.ropes, ids, ids, ids, by_table(attention))
        return nnx.merge(graphdef, params).hidden_states(ids, context, cache)

    return jax.eval_shape(run, abstract, jax.ShapeDtypeStruct((9,), jnp.int32), cache)


def pages(size: int) -> tuple[Any, Any]:
    return jax.ShapeDtypeStruct((size,), jnp.float32), jax.ShapeDtypeStruct((size, 2), jnp.float32)


def test_layers_get_the_settings_the_page_table_and_the_pool_array_that_are_theirs() -> None:
    """Two layers without a window and two with: two page tables, whose layers share two arrays."""
    calls = []

    def attend_of(table: str) -> Any:
        def attend(q: jax.Array, k: jax.Array, v: jax.Array, kv_layer: Any, **options: Any) -> tuple[jax.Array, Any]:
            calls.append((table, q.shape, k.shape, v.shape, [page.shape for page in kv_layer], options))
            return q, tuple(jnp.concatenate((page, page)) for page in kv_layer)

        return attend

    config = model(mixer={"soft_cap": 7.0}, layers=(FULL, WINDOW) * 2)
    hidden, new = traced(config, [attend_of("whole"), attend_of("window")], [pages(3), pages(5)])
    assert hidden.shape == (9, 24)
    shapes = ((9, 6, 8), (9, 3, 8), (9, 3, 8))
    common = {"soft_cap": 7.0, "scale": 0.3, "sinks": None}
    assert calls == [
        ("whole", *shapes, [(3,), (3, 2)], {"sliding_window": None, **common}),
        ("window", *shapes, [(6,), (6, 2)], {"sliding_window": 5, **common}),
        ("whole", *shapes, [(5,), (5, 2)], {"sliding_window": None, **common}),
        ("window", *shapes, [(10,), (10, 2)], {"sliding_window": 5, **common}),
    ]
    assert [[page.shape for page in layer] for layer in new] == [[(12,), (12, 2)], [(20,), (20, 2)]]


@pytest.mark.parametrize("arrays", [1, 3])
def test_the_cache_has_the_arrays_that_the_layers_use(arrays: int) -> None:
    config = model(layers=(FULL, FULL))
    with pytest.raises(ValueError, match=f"the cache has {arrays} arrays; the layers use 2"):
        traced(config, [echo], [pages(3)] * arrays)


def test_random_parameters_are_for_one_device() -> None:
    with pytest.raises(ConfigError, match="tp = 1"):
        Decoder(model(), ModelShape.of(model(), 3), jnp.dtype("float32"), rngs=nnx.Rngs(0))


def test_random_parameters_are_ready_for_training() -> None:
    """Matrices are spread by 0.02, norms start as the identity, biases at zero."""
    config = model(**VARIANTS["biases"], layers=(FULL,), tie_word_embeddings=True)
    build = jax.jit(lambda: nnx.state(Decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"), nnx.Rngs(7))))
    for path, leaf in nnx.to_flat_state(build()):
        value = np.asarray(leaf.get_value())
        if value.ndim == 1 or path[-1] == "bias":
            assert (value == float("norm" in str(path[-2]))).all(), path
        else:
            assert 0.015 < value.std() < 0.025, path
