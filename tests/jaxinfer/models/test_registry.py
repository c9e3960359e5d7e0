"""What a config.json says is read as its family means it; what is not understood is refused by name."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models.registry import FAMILIES, Family, model_config
from tests.jaxinfer.models import hub_configs
from tests.jaxinfer.models.hub_configs import ALL


def changed(name: str, **changes: Any) -> dict[str, Any]:
    return ALL[name] | changes


# What transformers 5's configuration classes have where a config.json says nothing: vocabulary, width, KV heads.
DEFAULTS = {
    "LlamaForCausalLM": (32000, 4096, 32),
    "MistralForCausalLM": (32000, 4096, 8),
    "Qwen2ForCausalLM": (151936, 4096, 32),
    "Qwen3ForCausalLM": (151936, 4096, 32),
    "Gemma2ForCausalLM": (256000, 2304, 4),
    "Gemma3ForCausalLM": (262208, 2304, 4),
    "Phi3ForCausalLM": (32064, 3072, 32),
    "Olmo2ForCausalLM": (50304, 4096, 32),
    "GraniteForCausalLM": (32000, 4096, 32),
    "SmolLM3ForCausalLM": (128256, 2048, 4),
    "Exaone4ForCausalLM": (102400, 4096, 32),
    "SeedOssForCausalLM": (155136, 4096, 8),
    "Olmo3ForCausalLM": (50304, 4096, 32),
    "ArceeForCausalLM": (32000, 2560, 32),
    "HunYuanDenseV1ForCausalLM": (290943, 4096, 32),
    "ApertusForCausalLM": (131072, 4096, 32),
    "DeciLMForCausalLM": (32000, 4096, 32),
    "MixtralForCausalLM": (32000, 4096, 8),
    "Qwen2MoeForCausalLM": (151936, 2048, 16),
    "Qwen3MoeForCausalLM": (151936, 2048, 4),
    "OlmoeForCausalLM": (50304, 2048, 16),
    "GraniteMoeForCausalLM": (32000, 4096, 32),
    "GraniteMoeSharedForCausalLM": (32000, 4096, 32),
    "Glm4MoeForCausalLM": (151552, 4096, 8),
    "GptOssForCausalLM": (201088, 2880, 8),
    "Ministral3ForCausalLM": (131072, 4096, 8),
    "Gemma3ForConditionalGeneration": (262208, 2304, 4),
    "Mistral3ForConditionalGeneration": (32000, 4096, 8),
    "Qwen2_5_VLForConditionalGeneration": (152064, 8192, 8),
    "Qwen3VLForConditionalGeneration": (151936, 4096, 32),
}
# What a config.json of a family has to say beside its model_type: heads of 42 are nobody's.
NEEDED = {
    "glm4_moe": {"head_dim": 128},
}
# Whose rms_norm_eps is 1e-5, and not 1e-6.
LARGE_EPS = (
    "phi3", "olmo2", "mixtral", "olmoe", "glm4_moe", "gpt_oss", "olmo3", "exaone4", "arcee", "hunyuan_v1_dense",
    "apertus", "ministral3", "qwen2_5_vl",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.architecture)
def test_an_empty_config_gets_the_family_defaults(family: Family) -> None:
    """A config that names only its model_type is that of the family's first model, as in transformers."""
    around = {"text_config": {}} if family.text_models is not None else {}
    config = model_config({"model_type": family.model_type} | around | NEEDED.get(family.model_type, {}))
    assert config.architecture == family.architecture
    assert (config.vocab_size, config.hidden_size, config.layers[0].mixer.num_kv_heads) == DEFAULTS[family.architecture]
    assert config.tie_word_embeddings == family.model_type.startswith(("gemma", "smollm3"))
    assert config.norm_eps == (1e-5 if family.model_type in LARGE_EPS else 1e-6)
    gemma3 = {1e4, 1e6}
    thetas = {"gemma3_text": gemma3, "gemma3": gemma3, "smollm3": {2e6}, "ministral3": {1e6}, "qwen2_5_vl": {1e6}}
    thetas |= {"qwen3_vl": {5e5}, "mixtral": {1e6}, "gpt_oss": {1.5e5}, "olmo3": {5e5}, "apertus": {1.2e7}}
    assert {rope.theta for rope in config.ropes} == thetas.get(family.model_type, {1e4})


def test_gemma3_ropes_by_layer_type() -> None:
    config = model_config(hub_configs.GEMMA_3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    local, full = config.ropes
    assert (local.kind, local.theta, full.kind, full.theta, full.factor) == ("default", 1e4, "linear", 1e6, 8.0)
    assert [layer.mixer.rope for layer in config.layers[:7]] == [0, 0, 0, 0, 0, 1, 0]


def test_gemma3_equal_ropes_are_computed_once() -> None:
    config = model_config(hub_configs.GEMMA_3_1B | {"rope_local_base_freq": 1000000})
    assert len(config.ropes) == 1


def test_smollm3_layers_without_rope() -> None:
    config = model_config(hub_configs.SMOLLM3_3B)
    assert [layer.mixer.rope for layer in config.layers[:8]] == [0, 0, 0, None, 0, 0, 0, None]
    derived = dict(hub_configs.SMOLLM3_3B) | {"no_rope_layers": None, "no_rope_layer_interval": 2}
    assert [layer.mixer.rope for layer in model_config(derived).layers[:4]] == [0, None, 0, None]
    windowed = derived | {"use_sliding_window": True, "sliding_window": 64, "layer_types": None}
    assert [layer.mixer.sliding_window for layer in model_config(windowed).layers[:4]] == [None, 64, None, 64]


def test_exaone4_layers_without_a_window_do_not_rotate() -> None:
    config = model_config(hub_configs.EXAONE_4_32B)
    assert [layer.mixer.rope for layer in config.layers[:8]] == [0, 0, 0, None, 0, 0, 0, None]
    plain = {"sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 64}
    config = model_config(changed("EXAONE-4.0-32B", **plain))
    assert {(layer.mixer.rope, layer.mixer.sliding_window) for layer in config.layers} == {(0, None)}
    counted = model_config(changed("EXAONE-4.0-32B", sliding_window_pattern=2, layer_types=None))
    assert [layer.mixer.sliding_window for layer in counted.layers[:4]] == [4096, None, 4096, None]
    with pytest.raises(ConfigError, match="sliding_window_pattern is 'LLLG'; without layer_types it must be"):
        model_config(changed("EXAONE-4.0-32B", layer_types=None))


def test_olmo3_stretches_the_layers_without_a_window_only() -> None:
    config = model_config(hub_configs.OLMO_3_7B)
    assert [config.ropes[layer.mixer.rope].kind for layer in config.layers[:4]] == ["default"] * 3 + ["yarn"]
    assert config.notes == ()
    other = model_config(changed("Olmo-3-7B", rope_theta=1e6))
    assert [rope.theta for rope in other.ropes] == [1e6, 1e6]
    assert "rope_theta = 1000000.0 counts for all layers; transformers 5.24 gives 500000.0" in other.notes[0]


def test_hunyuans_alpha_stretches_theta_and_the_other_keys_say_nothing() -> None:
    config = model_config(hub_configs.HUNYUAN_7B)
    assert (config.dynamic_border, config.longest, config.notes) == (None, 32768, ())
    plain = model_config(changed("Hunyuan-7B", rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert (plain.ropes[0].kind, plain.ropes[0].theta) == ("dynamic", 1e4)
    for scaling, word in (({"alpha": -1.0}, "alpha is -1.0"), ({"alpha": 2.0, "gamma": 3}, "gamma = 3")):
        with pytest.raises(ConfigError, match=word):
            model_config(changed("Hunyuan-7B", rope_scaling={"type": "dynamic", **scaling}))
    with pytest.raises(UnsupportedModelError, match="alpha"):
        model_config(changed("Llama-2-7b", rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 2.0}))


def test_qwen_windows() -> None:
    windowed = changed("Qwen2.5-7B", use_sliding_window=True, sliding_window=512, max_window_layers=26)
    assert [layer.mixer.sliding_window for layer in model_config(windowed).layers] == [None] * 26 + [512] * 2
    listed = windowed | {"layer_types": ["sliding_attention"] + ["full_attention"] * 27}
    assert [layer.mixer.sliding_window for layer in model_config(listed).layers] == [512] + [None] * 27


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "linear", "factor": 4.0}, {"kind": "linear", "factor": 4.0}),
        ({"rope_type": "dynamic", "factor": 2.0}, {"kind": "dynamic", "original_max_position_embeddings": 4096}),
        (
            {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096},
            {"kind": "yarn", "attention_factor": 0.1 * math.log(16.0) + 1.0, "beta_fast": 32.0, "truncate": True},
        ),
        (
            {"type": "yarn", "factor": None, "original_max_position_embeddings": 1024},
            {"factor": 4.0, "attention_factor": 0.1 * math.log(4.0) + 1.0},
        ),
        (
            {"type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8, "beta_slow": 2},
            {"attention_factor": (0.1 * math.log(40) + 1) / (0.08 * math.log(40) + 1), "beta_slow": 2.0},
        ),
        ({"type": "yarn", "factor": 4.0, "attention_factor": 1.25}, {"attention_factor": 1.25}),
        (
            {"type": "su", "short_factor": [1] * 64, "long_factor": [2.0] * 64, "factor": 4.0},
            {"kind": "longrope", "attention_factor": math.sqrt(1 + math.log(4) / math.log(4096))},
        ),
        ({}, {"kind": "default", "theta": 10000.0}),
        ({"rope_type": "default", "factor": None}, {"kind": "default"}),
    ],
)
def test_rope_settings(scaling: dict[str, Any], expected: dict[str, Any]) -> None:
    (rope,) = model_config(changed("Llama-2-7b", rope_scaling=scaling)).ropes
    assert {key: getattr(rope, key) for key in expected} == pytest.approx(expected)


def test_borders_of_ropes_that_end() -> None:
    dynamic = model_config(changed("Llama-2-7b", rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert (dynamic.dynamic_border, dynamic.longrope_border) == (4096, None)
    longrope = model_config(hub_configs.PHI_4_MINI)
    assert (longrope.dynamic_border, longrope.longrope_border) == (None, 4096)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({"eos_token_id": 2}, None, (2,)),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": [7, 9, 7]}, (7, 9)),
        ({"eos_token_id": 2}, {"eos_token_id": 5}, (5,)),
        ({"eos_token_id": 2}, {"temperature": 0.5}, (2,)),
        ({"eos_token_id": [2, 7]}, {"eos_token_id": None}, (2, 7)),
        ({"eos_token_id": 2}, {"eos_token_id": []}, (2,)),
        ({"eos_token_id": 2}, {"eos_token_id": -1}, (2,)),
        ({"eos_token_id": None}, None, ()),
        ({}, {"eos_token_id": 5}, (5,)),
        ({}, None, (2,)),
        ({}, {}, (2,)),
        ({"eos_token_id": -1}, None, ()),
    ],
)
def test_whose_end_tokens_count(config: dict[str, Any], generation: dict[str, Any] | None, expected: Any) -> None:
    base = {key: value for key, value in hub_configs.LLAMA_2_7B.items() if key != "eos_token_id"}
    assert model_config(base | config, generation).eos_token_ids == expected


def test_default_tokens_outside_a_small_vocabulary_are_left_out() -> None:
    config = model_config({"model_type": "phi3", "vocab_size": 1000})
    assert (config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ((), None, 1)


UNSUPPORTED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("Llama-2-7b", {"architectures": ["GPT2LMHeadModel"]}, ["GPT2LMHeadModel", "LlamaForCausalLM"]),
    ("gemma-3-1b", {"architectures": ["Gemma3nForConditionalGeneration"]}, ["Gemma3nForConditionalGeneration"]),
    ("Llama-2-7b", {"architectures": None, "model_type": "mamba"}, ["model_type", "mamba"]),
    ("Llama-2-7b", {"architectures": [], "model_type": "mamba"}, ["model_type", "mamba"]),
    ("Llama-2-7b", {"architectures": ["LlamaModel"]}, ["LlamaModel"]),
    ("Llama-2-7b", {"quantization": {"bits": 4}, "quantization_config": {"bits": 4}}, ["quantized by MLX"]),
    ("Llama-2-7b", {"quantization_config": {"quant_method": "gptq"}, "num_experts": 8}, ["mixture of experts"]),
    ("Llama-2-7b", {"hidden_act": "relu2"}, ["hidden_act", "relu2", "silu"]),
    ("gemma-2-2b", {"hidden_activation": "quick_gelu"}, ["hidden_activation", "quick_gelu", "gelu_pytorch_tanh"]),
    ("Llama-2-7b", {"rope_scaling": {"type": "mrope"}}, ["rope_type", "mrope", "llama3"]),
    ("Phi-3-mini-128k", {"rope_scaling": {"type": "linear", "factor": 2.0}}, ["linear", "Phi3ForCausalLM", "longrope"]),
    ("Llama-2-7b", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 8}}, ["beta_fast = 8", "linear"]),
    ("Llama-2-7b", {"quantization_config": {"quant_method": "gptq"}}, ["quantization_config", "quantized"]),
    ("Qwen3-8B", {"num_experts": 128}, ["num_experts", "mixture of experts"]),
    ("Llama-2-7b", {"clip_qkv": 8.0}, ["clip_qkv", "8.0", "LlamaForCausalLM"]),
    ("Llama-2-7b", {"sliding_window": 4096}, ["sliding_window", "4096"]),
    ("Llama-2-7b", {"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
    ("Llama-2-7b", {"rope_parameters": {"partial_rotary_factor": 0.5}}, ["partial_rotary_factor", "0.5"]),
    ("Llama-2-7b", {"torch_dtype": "float8_e4m3fn"}, ["torch_dtype", "float8_e4m3fn", "bfloat16"]),
    ("gemma-3-1b", {"use_bidirectional_attention": True}, ["use_bidirectional_attention", "True"]),
    ("gemma-3-1b", {"attn_logit_softcapping": 50.0}, ["attn_logit_softcapping", "50.0"]),
    ("Qwen2.5-7B", {"layer_types": ["full_attention"] * 27 + ["chunked_attention"]}, ["layer_types", "chunked"]),
    ("Mistral-7B-v0.1", {"layer_types": ["full_attention"] * 32}, ["layer_types", "MistralForCausalLM"]),
    ("gemma-2-2b", {"sliding_window_pattern": 3}, ["sliding_window_pattern", "3", "2"]),
    ("Phi-4-mini", {"full_attn_mod": 2}, ["full_attn_mod", "2"]),
    ("SmolLM2-135M", {"rope_interleaved": True}, ["rope_interleaved", "True"]),
    ("Apertus-8B", {"hidden_act": "relu2"}, ["hidden_act", "relu2", "xielu"]),
    ("Apertus-8B", {"post_norm": True}, ["post_norm", "True"]),
    ("Hunyuan-7B", {"use_cla": True}, ["use_cla", "True"]),
    ("Hunyuan-7B", {"attention_head_dim": 64}, ["attention_head_dim", "64", "128"]),
    ("EXAONE-4.0-32B", {"attention_bias": True}, ["attention_bias", "True"]),
]

MALFORMED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("Llama-2-7b", {"hidden_size": "4096"}, ["hidden_size", "'4096'"]),
    ("Llama-2-7b", {"num_hidden_layers": 0}, ["num_hidden_layers", "0"]),
    ("Llama-2-7b", {"hidden_size": 4100}, ["hidden_size 4100", "num_attention_heads 32"]),
    ("Llama-2-7b", {"num_key_value_heads": 5}, ["num_kv_heads", "5"]),
    ("Llama-2-7b", {"rms_norm_eps": "small"}, ["rms_norm_eps", "small"]),
    ("Llama-2-7b", {"attention_bias": 1}, ["attention_bias", "1"]),
    ("granite-3.1-2b", {"residual_multiplier": float("nan")}, ["residual_multiplier", "nan"]),
    ("Llama-2-7b", {"eos_token_id": "</s>"}, ["eos_token_id", "</s>"]),
    ("Llama-2-7b", {"architectures": ["LlamaForCausalLM", "Other"]}, ["architectures", "Other"]),
    ("Llama-2-7b", {"rope_scaling": [1]}, ["rope_scaling", "[1]"]),
    ("Llama-2-7b", {"rope_scaling": {"type": "linear"}}, ["rope_scaling", "factor", "linear"]),
    ("Llama-2-7b", {"rope_scaling": {"type": "linear", "factor": "2"}}, ["rope_scaling.factor", "'2'"]),
    ("Llama-2-7b", {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 9}}, ["lacks", "factor"]),
    (
        "Llama-2-7b",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
        ["rope_scaling", "rope_parameters"],
    ),
    (
        "Phi-3-mini-128k",
        {"rope_scaling": {"type": "su", "short_factor": [1.0] * 47, "long_factor": [1.0] * 48}},
        ["47", "48"],
    ),
    ("Phi-3-mini-128k", {"rope_scaling": {"type": "su", "short_factor": 1.0, "long_factor": 1.0}}, ["short_factor"]),
    ("gemma-3-1b", {"rope_parameters": {"rope_type": "default"}}, ["rope_parameters", "full_attention"]),
    ("gemma-2-2b", {"sliding_window": None}, ["sliding_window", "layer 0"]),
    ("Qwen2.5-7B", {"layer_types": ["sliding_attention"] * 28}, ["layer 0", "use_sliding_window"]),
    ("Qwen2.5-7B", {"layer_types": ["full_attention"] * 3}, ["layer_types", "28"]),
    ("Qwen2.5-7B", {"use_sliding_window": True, "max_window_layers": "28"}, ["max_window_layers", "'28'"]),
    ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, ["no_rope_layers", "36"]),
]


def test_unsupported_models_are_refused_by_name() -> None:
    for name, changes, words in UNSUPPORTED:
        with pytest.raises(UnsupportedModelError) as error:
            model_config(changed(name, **changes))
        assert all(word in str(error.value) for word in words), (changes, str(error.value))


def test_malformed_configs_are_refused_by_name() -> None:
    for name, changes, words in MALFORMED:
        with pytest.raises(ConfigError) as error:
            model_config(changed(name, **changes))
        assert all(word in str(error.value) for word in words), (changes, str(error.value))
    with pytest.raises(ConfigError, match="list"):
        model_config([])  # type: ignore[arg-type]


def test_keys_that_are_off_or_harmless_are_passed_over() -> None:
    noise = {
        "clip_qkv": None, "use_mrope": False, "num_local_experts": 0, "unsloth_version": "2025.1", "_commit_hash": "ab",
        "hidden_dropout": 0.1, "id2label": {"0": "A"}, "temperature": 0.6, "transformers.js_config": {"dtype": "q4"},
        "layer_types": ["full_attention"] * 32, "partial_rotary_factor": 1.0,
    }  # fmt: skip
    assert model_config(hub_configs.LLAMA_2_7B | noise) == model_config(hub_configs.LLAMA_2_7B)


@pytest.mark.parametrize("architectures", [["LLaMAForCausalLM"], [], None])
def test_other_ways_to_name_an_architecture(architectures: list[str] | None) -> None:
    """The old spelling is a name of vLLM 0.32's registry; without a name the model_type decides, as there."""
    assert model_config(changed("Llama-2-7b", architectures=architectures)) == model_config(ALL["Llama-2-7b"])


# What AutoConfig of transformers 5.24.0 makes of a rope that is described twice.
TWICE: list[tuple[str, dict[str, Any], float, str | None]] = [
    ("Llama-2-7b", {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 1e4, None),
    (
        "Llama-2-7b",
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        5e5,
        "rope_parameters.rope_theta = 500000.0 counts, as in transformers, and not rope_theta = 10000.0",
    ),
    (
        "Llama-2-7b",
        {"rope_theta": 1e4, "rope_scaling": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        5e5,
        "rope_scaling.rope_theta = 500000.0 counts",
    ),
    (
        "Llama-2-7b",
        {
            "rope_scaling": {"type": "linear", "factor": 2},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4},
        },
        1e4,
        None,
    ),
    (
        "gemma-3-1b",
        {
            "rope_theta": 5e5,
            "rope_local_base_freq": 1e4,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
        1e6,
        "rope_parameters.full_attention.rope_theta = 1000000.0 counts",
    ),
    (
        "gemma-3-1b",
        {
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_parameters": {"full_attention": {"rope_theta": 2e6}, "sliding_attention": {"rope_theta": 1e4}},
        },
        2e6,
        "rope_parameters.full_attention.rope_theta = 2000000.0 counts",
    ),
]


@pytest.mark.parametrize(("name", "changes", "theta", "note"), TWICE)
def test_a_rope_that_is_described_twice(name: str, changes: dict[str, Any], theta: float, note: str | None) -> None:
    given = changed(name, **changes)
    before = copy.deepcopy(given)
    config = model_config(given)
    assert given == before, "the caller's config was changed"
    assert config.ropes[-1].theta == theta
    if note is None:
        assert config.notes == ()
    else:
        (found,) = config.notes
        assert note in found


def test_gemma3_reads_truncate_for_no_layer_type() -> None:
    """transformers 5.24.0 looks for `truncate` beside the layer types, where none is; other families read it."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "truncate": False, "original_max_position_embeddings": 1024}
    parameters = {"full_attention": {**yarn, "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default"}}
    config = model_config(changed("gemma-3-1b", rope_scaling=None, rope_parameters=parameters))
    (full,) = [rope for rope in config.ropes if rope.kind == "yarn"]
    assert full.truncate
    assert any("rope_parameters.full_attention.truncate is passed over" in note for note in config.notes)
    llama = model_config(changed("Llama-2-7b", rope_scaling=yarn))
    assert not llama.ropes[0].truncate
    assert llama.notes == ()


def test_gemma3_does_not_look_for_the_trained_length_at_the_top() -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    config = model_config(changed("gemma-3-1b", rope_scaling=yarn, original_max_position_embeddings=1024))
    (full,) = [rope for rope in config.ropes if rope.kind == "yarn"]
    assert full.original_max_position_embeddings == hub_configs.GEMMA_3_1B["max_position_embeddings"]


def test_an_error_says_which_of_its_values_are_defaults() -> None:
    """A number that stands in no file must not look as if it did."""
    factors = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    phi = {key: value for key, value in hub_configs.PHI_3_MINI_128K.items() if not key.startswith("original_")}
    with pytest.raises(ConfigError) as error:
        model_config(phi | {"rope_scaling": {**factors, "original_max_position_embeddings": 2048}})
    assert "2048 in rope_scaling" in str(error.value)
    assert "config.json does not give original_max_position_embeddings 4096: the default of Phi3" in str(error.value)
    with pytest.raises(ConfigError, match=r"config\.json does not give num_attention_heads 32: the default of Llama"):
        model_config({"model_type": "llama", "hidden_size": 100})
    with pytest.raises(ConfigError, match=r"not give hidden_size 4096, num_attention_heads 32|not give .*hidden_size"):
        model_config({"model_type": "llama", "num_attention_heads": 3})
    with pytest.raises(ConfigError, match=r"does not give num_key_value_heads 8: the default of Mistral"):
        model_config({"model_type": "mistral", "num_attention_heads": 4})
    with pytest.raises(ConfigError) as written:
        model_config(changed("Llama-2-7b", hidden_size=4100))
    assert "default" not in str(written.value)
