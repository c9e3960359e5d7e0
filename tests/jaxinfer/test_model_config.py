"""A model's description: what its layers may be, and both forms in which folders have it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.cache_groups import CacheSpec
from jaxinfer.config import (
    AttentionConfig,
    ConfigError,
    LayerConfig,
    MlpConfig,
    ModelConfig,
    ParallelConfig,
    RopeConfig,
    RuntimeConfig,
)

ROOT = Path(__file__).parents[2]
ATTENTION = AttentionConfig(6, 3, 8, scale=0.3, qk_norm="head", soft_cap=50.0, qkv_bias=True, out_bias=True)
WINDOW = dataclasses.replace(ATTENTION, sliding_window=5, rope=None)
MLP = MlpConfig(31, activation="gelu", bias=True)

# What a folder of two such layers had when all layers shared the sizes that stood beside them.
OLDER: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "vocab_size": 37,
    "hidden_size": 24,
    "intermediate_size": 31,
    "num_layers": 2,
    "num_heads": 6,
    "num_kv_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "layers": [{"sliding_window": None, "rope": 0}, {"sliding_window": 5, "rope": None}],
    "ropes": [{"kind": "default", "theta": 10000.0, "rotary_dim": 8}],
    "activation": "gelu",
    "qkv_bias": True,
    "attention_out_bias": True,
    "mlp_bias": True,
    "qk_norm": "head",
    "query_scale": 0.3,
    "attention_softcap": 50.0,
    "eos_token_ids": [2, 7],
}


def model(*mixers: AttentionConfig) -> ModelConfig:
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=37,
        hidden_size=24,
        max_position_embeddings=64,
        layers=tuple(LayerConfig(mixer, MLP) for mixer in mixers),
        ropes=(RopeConfig("default", 1e4, 8),),
        eos_token_ids=(2, 7),
    )


def test_the_older_form_is_read_and_todays_is_written() -> None:
    config = ModelConfig.from_dict(OLDER)
    assert config == model(ATTENTION, WINDOW)
    written = json.loads(json.dumps(config.to_dict()))
    assert not written.keys() & {"num_layers", "num_heads", "intermediate_size"}
    assert written["layers"][1]["mixer"]["sliding_window"] == 5
    assert ModelConfig.from_dict(written) == config


@pytest.mark.parametrize("name", ["demo", "demo_draft"])
def test_shipped_folders_are_read(name: str) -> None:
    stored = json.loads((ROOT / "checkpoints" / name / "jaxinfer_config.json").read_text())["model"]
    described = json.loads((ROOT / "checkpoints" / name / "config.json").read_text())
    config = ModelConfig.from_dict(stored)
    assert config.num_layers == described["num_hidden_layers"]
    for layer in config.layers:
        assert layer.mixer.num_heads == described["num_attention_heads"]
        assert layer.mixer.num_kv_heads == described["num_key_value_heads"]
        assert layer.mixer.scale == layer.mixer.head_dim**-0.5
        assert layer.feed_forward == MlpConfig(described["intermediate_size"], activation="silu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 3}, "2 layer entries for 3 layers"),
        ({"num_heads": ...}, "incomplete or malformed: .*num_heads"),
        ({"intermediate_size": ...}, "incomplete or malformed: .*intermediate_size"),
        ({"num_heads": 7}, "num_heads 7 is not a multiple of num_kv_heads 3"),
        ({"width": 7}, r"unknown fields \['width'\]"),
        ({"layers": [{"mixer": {}}, {}]}, "incomplete or malformed: .*mixer"),
    ],
)
def test_a_malformed_older_form_is_refused(change: dict[str, Any], message: str) -> None:
    stored = {name: value for name, value in (OLDER | change).items() if value is not ...}
    with pytest.raises(ConfigError, match=message):
        ModelConfig.from_dict(stored)


def test_layers_of_one_cache_share_page_tables() -> None:
    config = model(ATTENTION, WINDOW, ATTENTION, WINDOW)
    assert (ATTENTION.cache, WINDOW.cache) == (CacheSpec(3, 8), CacheSpec(3, 8, window=5))
    assert config.cache_groups.num_tables == 2
    assert config.cache_groups.places() == {0: (0, 0), 1: (1, 0), 2: (0, 1), 3: (1, 1)}


def test_layers_may_differ_in_all_but_the_size_of_their_heads() -> None:
    model(ATTENTION, dataclasses.replace(ATTENTION, num_heads=12, qk_norm="whole", soft_cap=None))
    more = model(ATTENTION, dataclasses.replace(ATTENTION, num_kv_heads=2))
    assert (more.kept_kv_heads, {group.spec.kv_heads for group in more.cache_groups.groups}) == (6, {6})
    with pytest.raises(ConfigError, match="layer 1 has heads of head_dim 16, another of 8; they must be the same"):
        model(ATTENTION, dataclasses.replace(ATTENTION, head_dim=16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0; it must be a positive integer"),
        ({"head_dim": True}, "head_dim is True; it must be a positive integer"),
        ({"scale": 0.0}, "scale of attention scores is 0.0; it must be positive"),
        ({"scale": float("nan")}, "scale is nan; it must be a finite number"),
        ({"sliding_window": 0}, "sliding_window is 0; it must be positive"),
        ({"rope": 1}, "layer 0 names rope 1 of ropes, which has 1"),
        ({"head_dim": 4}, "rotary_dim 8 exceeds head_dim 4"),
    ],
)
def test_an_impossible_mixer_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model(dataclasses.replace(ATTENTION, **change))


def test_a_model_has_layers() -> None:
    with pytest.raises(ConfigError, match="layers is empty"):
        model()


@pytest.mark.parametrize(
    "config",
    [
        RuntimeConfig(),
        ParallelConfig(),
        RopeConfig("default", 1e4, 8),
        ATTENTION,
        MLP,
        LayerConfig(ATTENTION, MLP),
        model(ATTENTION),
    ],
    ids=lambda config: type(config).__name__,
)
def test_a_value_of_another_type_is_refused_by_name(config: Any) -> None:
    for field in dataclasses.fields(config):
        for value in (object(), [], {}, b"1", (None,)):
            with pytest.raises(ConfigError, match=rf"{field.name} is .*; it must be"):
                dataclasses.replace(config, **{field.name: value})


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (
            RuntimeConfig(),
            {"gpu_memory_utilization": "0.5"},
            "gpu_memory_utilization is '0.5'; it must be a finite number",
        ),
        (
            RuntimeConfig(),
            {"priority_ageing_seconds": float("inf")},
            "ageing_seconds is inf; it must be a finite number",
        ),
        (RuntimeConfig(), {"batch_invariant": 1}, "batch_invariant is 1; it must be True or False"),
        (RuntimeConfig(), {"language_model_only": "yes"}, "language_model_only is 'yes'; it must be True or False"),
        (RuntimeConfig(), {"language_model_only": False}, "--no-language-model-only.; it must be True"),
        (RuntimeConfig(), {"seed": "7"}, "seed is '7'; it must be an integer or None"),
        (RuntimeConfig(), {"device": "mps"}, "device is 'mps'; it must be cpu, gpu, tpu or None"),
        (RuntimeConfig(), {"dtype": True}, "dtype is True; it must be auto, float32 or bfloat16"),
        (RopeConfig("default", 1e4, 8), {"kind": "spiral"}, "kind is 'spiral'; it must be default, linear, dynamic,"),
        (
            RopeConfig("default", 1e4, 8),
            {"short_factor": (1.0, "x")},
            "a tuple of which each element is a finite number",
        ),
        (ATTENTION, {"sliding_window": 2.0}, "sliding_window is 2.0; it must be an integer or None"),
        (
            MLP,
            {"activation": "relu"},
            "activation is 'relu'; it must be silu, gelu, gelu_tanh, swiglu_oai, relu2 or xielu",
        ),
        (LayerConfig(ATTENTION, MLP), {"mixer": MLP}, "it must be of type AttentionConfig"),
        (model(ATTENTION), {"dtype": "float16"}, "dtype is 'float16'; it must be float32 or bfloat16"),
        (model(ATTENTION), {"context_length": -1}, "context_length is -1; it must be a positive integer"),
    ],
)
def test_a_wrong_type_is_answered_with_the_right_ones(config: Any, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **change)


def test_integers_stand_for_floats_and_folders_may_be_paths() -> None:
    assert MlpConfig(8) == dataclasses.replace(MlpConfig(8), bias=False)
    assert dataclasses.replace(model(ATTENTION), norm_offset=1, norm_eps=0).norm_offset == 1
    assert RuntimeConfig(gpu_memory_utilization=1, compilation_cache_dir=Path("x")).gpu_memory_utilization == 1
    assert RuntimeConfig(seed=None).seed is None
