"""Published configs become the right `ModelConfig`, in both spellings, and survive being stored."""

from __future__ import annotations

import math
import operator
from typing import Any

import pytest

from jaxinfer.config import LayerConfig, MlpConfig, ModelConfig, MoeConfig, RouterConfig
from jaxinfer.models.registry import model_config, supported_architectures
from tests.jaxinfer.models.hub_configs import ALL
from tests.jaxinfer.models.respelling import respelled, text_part

# What each published config means, written from the models' reports and files, beyond the sizes that are copied.
EXPECTED: dict[str, dict[str, Any]] = {
    "Llama-3.1-8B": {"mixer.head_dim": 128, "eos_token_ids": (128001, 128008, 128009), "mixer.scale": 128**-0.5},
    "Llama-2-7b": {"dtype": "bfloat16", "norm_eps": 1e-5, "mixer.num_kv_heads": 32, "tie_word_embeddings": False},
    "SmolLM2-135M": {"mixer.num_heads": 9, "mixer.num_kv_heads": 3, "mixer.head_dim": 64, "tie_word_embeddings": True},
    "Mistral-7B-v0.1": {"mixer.num_kv_heads": 8, "feed_forward.intermediate_size": 14336, "mixer.qkv_bias": False},
    "Qwen2.5-7B": {"mixer.qkv_bias": True, "mixer.out_bias": False, "feed_forward.bias": False, "mixer.num_heads": 28},
    "Qwen3-8B": {"mixer.qk_norm": "head", "mixer.qkv_bias": False, "mixer.head_dim": 128},
    "gemma-2-2b": {
        "mixer.soft_cap": 50.0, "final_softcap": 30.0, "mixer.scale": 1 / 16, "feed_forward.activation": "gelu_tanh",
        "embedding_multiplier": 48.0, "embedding_multiplier_rounded": True, "norm_offset": 1.0, "pre_norm": True,
        "norm_scale_float32": True, "post_norm": True, "tie_word_embeddings": True, "dtype": "float32",
    },
    "gemma-3-1b": {
        "mixer.soft_cap": None, "final_softcap": None, "mixer.qk_norm": "head", "mixer.num_kv_heads": 1,
        "embedding_multiplier": math.sqrt(1152), "eos_token_ids": (1, 106), "tie_word_embeddings": True,
    },
    "Phi-3-mini-128k": {"mixer.num_kv_heads": 32, "mixer.head_dim": 96, "mixer.scale": 96**-0.5},
    "Phi-4-mini": {"mixer.num_kv_heads": 8, "mixer.head_dim": 128, "tie_word_embeddings": True},
    "OLMo-2-7B": {
        "pre_norm": False, "post_norm": True, "mixer.qk_norm": "whole", "norm_scale_float32": True, "norm_offset": 0.0,
        "bos_token_id": None, "eos_token_ids": (100257,),
    },
    "granite-3.1-2b": {
        "embedding_multiplier": 12.0, "embedding_multiplier_rounded": False, "residual_multiplier": 0.22,
        "logits_divisor": 8.0, "mixer.scale": 1 / 64, "vocab_size": 49155,
    },
    "SmolLM3-3B": {"tie_word_embeddings": True, "bos_token_id": 128000, "eos_token_ids": (128012,)},
    "EXAONE-4.0-32B": {
        "pre_norm": False, "post_norm": True, "mixer.qk_norm": "head", "mixer.num_heads": 40, "mixer.num_kv_heads": 8,
        "norm_scale_float32": False,
    },
    "Seed-OSS-36B": {
        "mixer.qkv_bias": True, "mixer.out_bias": False, "mixer.head_dim": 128, "mixer.num_heads": 80, "pre_norm": True,
    },
    "Olmo-3-7B": {
        "pre_norm": False, "post_norm": True, "mixer.qk_norm": "whole", "norm_scale_float32": True,
        "bos_token_id": None,
    },
    "AFM-4.5B": {
        "feed_forward.gated": False, "feed_forward.activation": "relu2", "feed_forward.bias": False,
        "mixer.head_dim": 128, "mixer.num_heads": 20,
    },
    "Hunyuan-7B": {
        "mixer.qk_norm": "head", "mixer.qk_norm_after_rope": True, "tie_word_embeddings": True,
        "feed_forward.gated": True,
    },
    "Apertus-8B": {
        "feed_forward.gated": False, "feed_forward.activation": "xielu", "mixer.qk_norm": "head",
        "mixer.qk_norm_after_rope": False, "eos_token_ids": (68, 72),
    },
    "Nemotron-Super-49B": {"pre_norm": True, "norm_eps": 1e-5, "tie_word_embeddings": False},
    "granite-swa": {"mixer.sinks": True, "mixer.scale": 1.0, "logits_divisor": 1.0, "mixer.head_dim": 128},
    "Mixtral-8x7B": {
        "feed_forward.num_experts": 8, "feed_forward.router": RouterConfig(2),
        "feed_forward.expert": MlpConfig(14336), "feed_forward.shared": None, "mixer.num_kv_heads": 8,
    },
    "Qwen1.5-MoE-A2.7B": {
        "feed_forward.num_experts": 60, "feed_forward.router": RouterConfig(4, normalize=False),
        "feed_forward.expert": MlpConfig(1408), "feed_forward.shared": MlpConfig(5632),
        "feed_forward.shared_gate": True, "mixer.qkv_bias": True, "mixer.out_bias": False,
    },
    "Qwen3-30B-A3B": {
        "feed_forward.num_experts": 128, "feed_forward.router": RouterConfig(8), "feed_forward.expert": MlpConfig(768),
        "mixer.qk_norm": "head", "mixer.num_kv_heads": 4, "mixer.head_dim": 128,
    },
    "OLMoE-1B-7B": {
        "feed_forward.num_experts": 64, "feed_forward.router": RouterConfig(8, normalize=False),
        "feed_forward.expert": MlpConfig(1024), "mixer.qk_norm": "whole", "pre_norm": True, "post_norm": False,
    },
    "granite-3.0-1b-a400m": {
        "feed_forward.num_experts": 32, "feed_forward.router": RouterConfig(8, scored_first=False, normalize=False),
        "feed_forward.expert": MlpConfig(512), "mixer.scale": 1 / 64, "logits_divisor": 6.0,
    },
    "GLM-4.5-Air": {"mixer.qkv_bias": True, "mixer.out_bias": False, "mixer.qk_norm": "none", "mixer.head_dim": 128},
    "gpt-oss-20b": {
        "feed_forward.num_experts": 32,
        "feed_forward.router": RouterConfig(4, scored_first=False, normalize=False, bias=True),
        "feed_forward.expert": MlpConfig(2880, "swiglu_oai", bias=True, limit=7.0),
        "mixer.sinks": True, "mixer.out_bias": True, "mixer.num_heads": 64,
    },
    "gpt-oss-120b": {"feed_forward.num_experts": 128, "mixer.sinks": True, "mixer.num_heads": 64, "num_layers": 36},
    "gemma-3-4b": {
        "mixer.qk_norm": "head", "mixer.num_heads": 8, "mixer.num_kv_heads": 4, "mixer.head_dim": 256,
        "vocab_size": 262208, "max_position_embeddings": 131072, "eos_token_ids": (1, 106), "dtype": "bfloat16",
        "tie_word_embeddings": True, "longest": 131072,
    },
    "Mistral-Small-3.1": {"mixer.num_heads": 32, "mixer.head_dim": 128, "dtype": "bfloat16", "vocab_size": 131072},
    "Ministral-3-8B": {"mixer.num_kv_heads": 8, "longest": 262144, "tie_word_embeddings": False},
    "Ministral-3-8B-text": {"mixer.num_kv_heads": 8, "longest": 262144, "pad_token_id": 11},
    "Qwen2.5-VL-7B": {"mixer.qkv_bias": True, "mixer.out_bias": False, "mixer.num_heads": 28, "dtype": "bfloat16"},
    "Qwen3-VL-8B": {"mixer.qk_norm": "head", "mixer.qkv_bias": False, "dtype": "bfloat16", "eos_token_ids": (151645,)},
}  # fmt: skip

# (theta, kind, rotary_dim, attention_factor) of the first rope, windows of the first six layers.
ROPES: dict[str, tuple[float, str, int, float]] = {
    "Llama-3.1-8B": (500000.0, "llama3", 128, 1.0),
    "Llama-2-7b": (10000.0, "default", 128, 1.0),
    "SmolLM2-135M": (100000.0, "default", 64, 1.0),
    "Mistral-7B-v0.1": (10000.0, "default", 128, 1.0),
    "Qwen2.5-7B": (1000000.0, "default", 128, 1.0),
    "Qwen3-8B": (1000000.0, "default", 128, 1.0),
    "gemma-2-2b": (10000.0, "default", 256, 1.0),
    "gemma-3-1b": (10000.0, "default", 256, 1.0),
    "Phi-3-mini-128k": (10000.0, "longrope", 96, 1.1902380714238083),  # sqrt(1 + ln 32 / ln 4096)
    "Phi-4-mini": (10000.0, "longrope", 96, 1.1902380714238083),
    "OLMo-2-7B": (500000.0, "default", 128, 1.0),
    "granite-3.1-2b": (5000000.0, "default", 64, 1.0),
    "SmolLM3-3B": (5000000.0, "default", 128, 1.0),
    "EXAONE-4.0-32B": (1000000.0, "llama3", 128, 1.0),
    "Seed-OSS-36B": (10000000.0, "default", 128, 1.0),
    "Olmo-3-7B": (500000.0, "default", 128, 1.0),
    "AFM-4.5B": (10000.0, "yarn", 128, 0.1 * math.log(20.0) + 1.0),
    "Hunyuan-7B": (10000.0 * 1000.0 ** (128 / 126), "default", 128, 1.0),  # 11158840
    "Apertus-8B": (12000000.0, "llama3", 128, 1.0),
    "Nemotron-Super-49B": (500000.0, "llama3", 128, 1.0),
    "granite-swa": (10000.0, "default", 128, 1.0),
    "Mixtral-8x7B": (1000000.0, "default", 128, 1.0),
    "Qwen1.5-MoE-A2.7B": (1000000.0, "default", 128, 1.0),
    "Qwen3-30B-A3B": (1000000.0, "default", 128, 1.0),
    "OLMoE-1B-7B": (10000.0, "default", 128, 1.0),
    "granite-3.0-1b-a400m": (10000.0, "default", 64, 1.0),
    "GLM-4.5-Air": (1000000.0, "default", 64, 1.0),
    "gpt-oss-20b": (150000.0, "yarn", 64, 0.1 * math.log(32) + 1),
    "gpt-oss-120b": (150000.0, "yarn", 64, 0.1 * math.log(32) + 1),
    "gemma-3-4b": (10000.0, "default", 256, 1.0),
    "Mistral-Small-3.1": (1000000000.0, "default", 128, 1.0),
    "Ministral-3-8B": (1000000.0, "yarn", 128, 1.0),
    "Ministral-3-8B-text": (1000000.0, "yarn", 128, 1.0),
    "Qwen2.5-VL-7B": (1000000.0, "default", 128, 1.0),
    "Qwen3-VL-8B": (5000000.0, "default", 128, 1.0),
}
WINDOWS: dict[str, list[int | None]] = {
    "Mistral-7B-v0.1": [4096] * 6,
    "gemma-2-2b": [4096, None] * 3,
    "gemma-3-1b": [512] * 5 + [None],
    "gemma-3-4b": [1024] * 5 + [None],
    "Phi-3-mini-128k": [262144] * 6,
    "Phi-4-mini": [262144] * 6,
    "EXAONE-4.0-32B": [4096, 4096, 4096, None, 4096, 4096],
    "Olmo-3-7B": [4096, 4096, 4096, None, 4096, 4096],
    "granite-swa": [None, 128, 128, 128, None, 128],
    "gpt-oss-20b": [128, None] * 3,
    "gpt-oss-120b": [128, None] * 3,
}


def described(config: ModelConfig, layer: LayerConfig, key: str) -> Any:
    """A field of the model or, as `mixer.` and `feed_forward.`, of a layer's part."""
    return operator.attrgetter(key)(layer if "." in key else config)


@pytest.mark.parametrize("name", ALL)
def test_published_config(name: str) -> None:
    config = model_config(ALL[name])
    assert config.longrope_border == (4096 if name.startswith("Phi") else None)
    assert {rope.query_scaling for rope in config.ropes} == {0.1 if name.startswith("Ministral-3") else 0.0}
    for layer in config.layers:
        found = {key: described(config, layer, key) for key in EXPECTED[name]}
        assert found == EXPECTED[name]
    for ours, theirs in (("hidden_size", "hidden_size"), ("num_layers", "num_hidden_layers")):
        assert getattr(config, ours) == text_part(ALL[name])[theirs]
    rope = config.ropes[0]
    assert (rope.theta, rope.kind, rope.rotary_dim) == ROPES[name][:3]
    assert rope.attention_factor == pytest.approx(ROPES[name][3], rel=1e-15)
    assert [mixer.sliding_window for mixer in config.attentions[:6]] == WINDOWS.get(name, [None] * 6)


@pytest.mark.parametrize("name", ALL)
def test_both_spellings_mean_the_same(name: str) -> None:
    assert model_config(respelled(ALL[name])) == model_config(ALL[name])


@pytest.mark.parametrize("name", ALL)
def test_configs_survive_json(name: str) -> None:
    config = model_config(ALL[name])
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_every_family_has_a_published_config() -> None:
    alike = {"GraniteMoeSharedForCausalLM"}  # GraniteMoe with a further width
    assert {config["architectures"][0] for config in ALL.values()} == set(supported_architectures()) - alike


def test_glms_first_layer_is_dense_and_the_others_have_experts() -> None:
    first, *others = model_config(ALL["GLM-4.5-Air"]).layers
    assert first.feed_forward == MlpConfig(10944)
    router = RouterConfig(8, scoring="sigmoid", correction=True)
    moe = MoeConfig(128, router, MlpConfig(1408), shared=MlpConfig(1408))
    assert [layer.feed_forward for layer in others] == [moe] * 45
