"""Layers that are alike run in a loop, with the results of the layers one after the other."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxinfer.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig
from jaxinfer.models.context import Attend, Place, StepContext, by_table
from jaxinfer.models.decoder import Decoder, abstract_decoder
from jaxinfer.models.layer_loop import Stretch, stretches
from jaxinfer.models.shape import ModelShape
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import quantize
from pallas_kernels.quantized_matmul.layout import for_target

PAGES = 3  # of each array
FULL = LayerConfig(AttentionConfig(4, 2, 8, scale=0.3, qkv_bias=True, qk_norm="head"), MlpConfig(32, bias=True))
WINDOW = dataclasses.replace(FULL, mixer=dataclasses.replace(FULL.mixer, sliding_window=5))


@pytest.mark.parametrize(
    ("kinds", "wanted"),
    [
        ("", []),
        ("a", [Stretch(0, 1, 1)]),
        ("ab", [Stretch(0, 2, 1)]),
        ("aa", [Stretch(0, 1, 2)]),
        ("aaaaaaaa", [Stretch(0, 1, 8)]),
        ("abababab", [Stretch(0, 2, 4)]),
        ("bbbbba" * 4 + "bb", [Stretch(0, 6, 4), Stretch(24, 1, 2)]),  # Gemma 3, whose last turn is not whole
        ("abbbbbbc", [Stretch(0, 1, 1), Stretch(1, 1, 6), Stretch(7, 1, 1)]),  # the ends keep more bits
        ("abcdaefg", [Stretch(0, 8, 1)]),
        ("aaaabbbb", [Stretch(0, 1, 4), Stretch(4, 1, 4)]),
        ("xabcabcy", [Stretch(0, 1, 1), Stretch(1, 3, 2), Stretch(7, 1, 1)]),
    ],
)
def test_layers_are_cut_where_their_pattern_begins_and_ends(kinds: str, wanted: list[Stretch]) -> None:
    assert stretches(kinds) == wanted


def test_every_cut_has_all_layers_in_their_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        kinds = rng.integers(0, 3, rng.integers(1, 30)).tolist()
        order = []
        for stretch in stretches(kinds):
            positions = [stretch.layers(i) for i in range(stretch.period)]
            assert all(len({kinds[layer] for layer in alike}) == 1 for alike in positions)
            order += [alike[turn] for turn in range(stretch.turns) for alike in positions]
        assert order == list(range(len(kinds)))


def model(layers: tuple[LayerConfig, ...]) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM", vocab_size=37, hidden_size=16, max_position_embeddings=64,
        layers=layers, ropes=(RopeConfig("default", 1e4, 8),),
    )  # fmt: skip


def parameters(config: ModelConfig, quantized: bool) -> tuple[Any, Any]:
    graphdef, abstract = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"))
    rng = np.random.default_rng(1)

    def fill(path: tuple[Any, ...], variable: Any) -> Any:
        array = jnp.asarray(0.5 * rng.standard_normal(variable.shape), jnp.float32)
        if quantized and variable.get_metadata()["inputs"]:
            flat = array.reshape(*array.shape[: array.ndim - variable.get_metadata()["inputs"]], -1)
            return variable.replace(for_target(quantize(flat, "int8"), DeviceTarget("cpu", "cpu")))
        return variable.replace(array)

    flat = [(path, fill(path, variable)) for path, variable in nnx.to_flat_state(abstract)]
    return graphdef, nnx.to_pure_dict(nnx.from_flat_state(flat))


def attention_of(place: Place) -> Attend:
    """Results that depend on everything that a layer says and on what the layers before it wrote to its pages."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array, kv_layer: Any, **options: Any) -> tuple[jax.Array, Any]:
        k_pages, v_pages = kv_layer
        before = k_pages[place.first_page] + 3 * v_pages[place.first_page + 1] + place.table
        k_pages = k_pages.at[place.first_page].add(jnp.mean(k))
        v_pages = v_pages.at[place.first_page + 1].add(jnp.mean(v) + (options["sliding_window"] or 0))
        out = q * before + jnp.repeat(k * v, q.shape[1] // k.shape[1], axis=1)
        return out.astype(q.dtype), (k_pages, v_pages)

    return attend


@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "quantized"])
@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(
            (FULL, WINDOW, WINDOW) * 2, id="periodic", marks=pytest.mark.longer
        ),  # two page tables for layers with a window
        pytest.param((FULL,) * 4, id="equal", marks=pytest.mark.longer),
        pytest.param((FULL, *(WINDOW,) * 4, FULL), id="ends", marks=pytest.mark.longer),
        pytest.param((FULL, WINDOW), id="unequal"),
    ],
)
def test_a_loop_computes_what_its_layers_do_in_turn(layers: tuple[LayerConfig, ...], quantized: bool) -> None:
    config = model(layers)
    graphdef, params = parameters(config, quantized)
    depth = config.cache_groups.depth
    pool = jnp.asarray(np.random.default_rng(2).standard_normal(depth * PAGES), jnp.float32)

    @jax.jit
    def looped(params: Any, ids: jax.Array, pages: Any) -> tuple[jax.Array, Any]:
        context = StepContext.of(config.ropes, ids, ids, ids, attention_of, looped=True)
        hidden, (pages,) = nnx.merge(graphdef, params).hidden_states(ids, context, [pages])
        return hidden, pages

    @jax.jit
    def in_turn(params: Any, ids: jax.Array, pages: Any) -> tuple[jax.Array, Any]:
        decoder: Decoder = nnx.merge(graphdef, params)
        context = StepContext.of(config.ropes, ids, ids, ids, attention_of)
        hidden = decoder.embed.embed(ids)
        places = config.cache_groups.places()
        for i, layer in enumerate(decoder.layers):
            table, array = places[i]
            hidden, pages, _ = layer(hidden, context, attention_of(Place(table, array * PAGES)), pages)
        return decoder.final_norm(hidden), pages

    ids = jnp.arange(9, dtype=jnp.int32)
    found, wanted = (jax.tree.map(np.asarray, run(params, ids, (pool, 2 * pool))) for run in (looped, in_turn))
    # The mean in this test's attention, a sum of products of no fixed order, may differ in its last bit.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), found, wanted)


def traced(layers: int) -> int:
    """How often the attention of a model is traced."""
    config = model((FULL, WINDOW) * (layers // 2))
    graphdef, params = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"))
    calls = []

    def counted(place: Place) -> Attend:
        calls.append(place)
        return attention_of(place)

    def run(params: Any, ids: jax.Array, pages: Any) -> Any:
        context = StepContext.of(config.ropes, ids, ids, ids, counted, looped=True)
        return nnx.merge(graphdef, params).hidden_states(ids, context, [pages])

    pages = jax.ShapeDtypeStruct((config.cache_groups.depth * PAGES,), jnp.float32)
    jax.eval_shape(run, params, jax.ShapeDtypeStruct((9,), jnp.int32), (pages, pages))
    return len(calls)


def test_a_program_has_one_copy_of_layers_that_are_alike() -> None:
    assert traced(4) == traced(12) < 12


@pytest.mark.parametrize(
    ("arrays", "pages", "message"), [(2, 4, "2 arrays; with looped"), (1, 5, "has 5 pages; for 4")]
)
def test_one_array_has_the_pages_of_all(arrays: int, pages: int, message: str) -> None:
    config = model((FULL,) * 4)
    graphdef, params = abstract_decoder(config, ModelShape.of(config, 1), jnp.dtype("float32"))
    shape = jax.ShapeDtypeStruct((pages,), jnp.float32)

    def run(params: Any, ids: jax.Array, cache: Any) -> Any:
        context = StepContext.of(config.ropes, ids, ids, ids, attention_of, looped=True)
        return nnx.merge(graphdef, params).hidden_states(ids, context, cache)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(run, params, jax.ShapeDtypeStruct((9,), jnp.int32), [(shape, shape)] * arrays)


def test_without_a_loop_a_layer_has_its_own_arrays() -> None:
    with pytest.raises(ValueError, match="without a loop over layers"):
        by_table([attention_of(Place(0))])(Place(0, 3))
