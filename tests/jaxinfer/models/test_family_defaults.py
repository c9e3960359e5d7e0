"""What a config.json leaves out is what transformers has for the family."""

from __future__ import annotations

import pytest

from jaxinfer.models.registry import FAMILIES, Family, model_config

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
    "GraniteSWAForCausalLM": (100352, 2560, 4),
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
    "apertus", "ministral3", "qwen2_5_vl", "granite_swa",
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.architecture)
def test_an_empty_config_gets_the_family_defaults(family: Family) -> None:
    """A config that names only its model_type is that of the family's first model, as in transformers."""
    around = {"text_config": {}} if family.text_models is not None else {}
    config = model_config({"model_type": family.model_type} | around | NEEDED.get(family.model_type, {}))
    assert config.architecture == family.architecture
    assert (config.vocab_size, config.hidden_size, config.layers[0].mixer.num_kv_heads) == DEFAULTS[family.architecture]
    assert config.tie_word_embeddings == family.model_type.startswith(("gemma", "smollm3", "granite_swa"))
    assert config.norm_eps == (1e-5 if family.model_type in LARGE_EPS else 1e-6)
    gemma3 = {1e4, 1e6}
    thetas = {"gemma3_text": gemma3, "gemma3": gemma3, "smollm3": {2e6}, "ministral3": {1e6}, "qwen2_5_vl": {1e6}}
    thetas |= {"qwen3_vl": {5e5}, "mixtral": {1e6}, "gpt_oss": {1.5e5}, "olmo3": {5e5}, "apertus": {1.2e7}}
    assert {rope.theta for rope in config.ropes} == thetas.get(family.model_type, {1e4})
