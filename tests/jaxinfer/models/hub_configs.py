"""config.json of well-known models as published; long lists of rope factors are replaced by formulas."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]


def _published(architecture: str, model_type: str, dtype: str = "bfloat16", **values: Any) -> Config:
    """What nearly every published file has besides its own values."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        "transformers_version": "4.43.1",
        "use_cache": True,
    } | values


LLAMA_3_1_8B = _published(
    "LlamaForCausalLM", "llama", attention_bias=False, bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
    hidden_act="silu", hidden_size=4096, intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_theta=500000.0, tie_word_embeddings=False, vocab_size=128256,
    rope_scaling={
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)  # fmt: skip

LLAMA_2_7B = _published(
    "LlamaForCausalLM", "llama", "float16", _name_or_path="meta-llama/Llama-2-7b-hf", bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_scaling=None, tie_word_embeddings=False, vocab_size=32000,
)  # fmt: skip

SMOLLM2_135M = _published(
    "LlamaForCausalLM", "llama", attention_bias=False, bos_token_id=0, eos_token_id=0, hidden_act="silu",
    hidden_size=576, intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192,
    num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_interleaved=False, rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, vocab_size=49152,
)  # fmt: skip

MISTRAL_7B_V01 = _published(
    "MistralForCausalLM", "mistral", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False,
    vocab_size=32000,
)  # fmt: skip

QWEN2_5_7B = _published(
    "Qwen2ForCausalLM", "qwen2", bos_token_id=151643, eos_token_id=151645, hidden_act="silu", hidden_size=3584,
    intermediate_size=18944, max_position_embeddings=32768, max_window_layers=28, num_attention_heads=28,
    num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=131072,
    tie_word_embeddings=False, use_sliding_window=False, vocab_size=152064,
)  # fmt: skip

QWEN3_8B = _published(
    "Qwen3ForCausalLM", "qwen3", attention_bias=False, bos_token_id=151643, eos_token_id=151645, head_dim=128,
    hidden_act="silu", hidden_size=4096, intermediate_size=12288, max_position_embeddings=40960, max_window_layers=36,
    num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=1000000, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip

GEMMA_2_2B = _published(
    "Gemma2ForCausalLM", "gemma2", "float32", attention_bias=False, attn_logit_softcapping=50.0, bos_token_id=2,
    cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=2304, intermediate_size=9216,
    max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4, pad_token_id=0,
    query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
)  # fmt: skip

GEMMA_3_1B = _published(
    "Gemma3ForCausalLM", "gemma3_text", attention_bias=False, attn_logit_softcapping=None, bos_token_id=2,
    cache_implementation="hybrid", eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=1152, intermediate_size=6912, max_position_embeddings=32768,
    num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256,
    rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
    sliding_window_pattern=6, vocab_size=262144,
)  # fmt: skip

_PHI = _published(
    "Phi3ForCausalLM", "phi3", attention_bias=False, embd_pdrop=0.0, hidden_act="silu", hidden_size=3072,
    auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, intermediate_size=8192, max_position_embeddings=131072,
    num_hidden_layers=32, original_max_position_embeddings=4096, resid_pdrop=0.0, rms_norm_eps=1e-05,
    rope_theta=10000.0, sliding_window=262144,
)  # fmt: skip

PHI_3_MINI_128K = _PHI | {
    "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "num_attention_heads": 32,
    "num_key_value_heads": 32, "tie_word_embeddings": False, "vocab_size": 32064,
    "rope_scaling": {
        "type": "su",
        "short_factor": [1.05 + 0.02 * pair for pair in range(48)],
        "long_factor": [1.03 + 1.3 * pair for pair in range(48)],
    },
}  # fmt: skip

PHI_4_MINI = _PHI | {
    "bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999, "num_attention_heads": 24,
    "num_key_value_heads": 8, "tie_word_embeddings": True, "vocab_size": 200064, "partial_rotary_factor": 0.75,
    "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1.0] * 48,
        "long_factor": [1.0 + 0.7 * pair for pair in range(48)],
    },
}  # fmt: skip

OLMO_2_7B = _published(
    "Olmo2ForCausalLM", "olmo2", "float32", attention_bias=False, eos_token_id=100257, hidden_act="silu",
    hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=500000, tie_word_embeddings=False, vocab_size=100352,
)  # fmt: skip

GRANITE_3_1_2B = _published(
    "GraniteForCausalLM", "granite", attention_bias=False, attention_multiplier=0.015625, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", hidden_size=2048, intermediate_size=8192,
    logits_scaling=8.0, max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=40,
    num_key_value_heads=8, pad_token_id=0, residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=5000000.0, tie_word_embeddings=True, vocab_size=49155,
) | {"attention_dropout": 0.1}  # fmt: skip

SMOLLM3_3B = _published(
    "SmolLM3ForCausalLM", "smollm3", attention_bias=False, eos_token_id=128012, hidden_act="silu", hidden_size=2048,
    intermediate_size=11008, layer_types=["full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28,
    mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16,
    num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False, vocab_size=128256,
)  # fmt: skip

MIXTRAL_8X7B = _published(
    "MixtralForCausalLM", "mixtral", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_experts_per_tok=2,
    num_hidden_layers=32, num_key_value_heads=8, num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05,
    rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False, vocab_size=32000,
)  # fmt: skip

QWEN1_5_MOE_A2_7B = _published(
    "Qwen2MoeForCausalLM", "qwen2_moe", bos_token_id=151643, decoder_sparse_step=1, eos_token_id=151643,
    hidden_act="silu", hidden_size=2048, intermediate_size=5632, max_position_embeddings=8192, max_window_layers=21,
    moe_intermediate_size=1408, norm_topk_prob=False, num_attention_heads=16, num_experts=60, num_experts_per_tok=4,
    num_hidden_layers=24, num_key_value_heads=16, output_router_logits=False, qkv_bias=True, rms_norm_eps=1e-06,
    rope_theta=1000000.0, router_aux_loss_coef=0.001, shared_expert_intermediate_size=5632, sliding_window=32768,
    tie_word_embeddings=False, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip

QWEN3_30B_A3B = _published(
    "Qwen3MoeForCausalLM", "qwen3_moe", attention_bias=False, bos_token_id=151643, decoder_sparse_step=1,
    eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=2048, intermediate_size=6144,
    max_position_embeddings=40960, max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768,
    norm_topk_prob=True, num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
    num_key_value_heads=4, output_router_logits=False, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000.0,
    router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False,
    vocab_size=151936,
)  # fmt: skip

OLMOE_1B_7B = _published(
    "OlmoeForCausalLM", "olmoe", attention_bias=False, clip_qkv=None, eos_token_id=50279, hidden_act="silu",
    hidden_size=2048, intermediate_size=1024, max_position_embeddings=4096, norm_topk_prob=False,
    num_attention_heads=16, num_experts=64, num_experts_per_tok=8, num_hidden_layers=16, num_key_value_heads=16,
    output_router_logits=False, pad_token_id=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0,
    router_aux_loss_coef=0.01, tie_word_embeddings=False, vocab_size=50304,
)  # fmt: skip

GRANITE_3_0_1B_A400M = _published(
    "GraniteMoeForCausalLM", "granitemoe", attention_bias=False, attention_multiplier=0.015625, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", hidden_size=1024, intermediate_size=512,
    logits_scaling=6.0, max_position_embeddings=4096, num_attention_heads=16, num_experts_per_tok=8,
    num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32, output_router_logits=False, pad_token_id=0,
    residual_multiplier=0.22, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=10000, router_aux_loss_coef=0.0,
    tie_word_embeddings=True, vocab_size=49155,
)  # fmt: skip

GLM_4_5_AIR = _published(
    "Glm4MoeForCausalLM", "glm4_moe", attention_bias=True, eos_token_id=[151329, 151336, 151338],
    first_k_dense_replace=1, head_dim=128, hidden_act="silu", hidden_size=4096, intermediate_size=10944,
    max_position_embeddings=131072, moe_intermediate_size=1408, n_group=1, n_routed_experts=128, n_shared_experts=1,
    norm_topk_prob=True, num_attention_heads=96, num_experts_per_tok=8, num_hidden_layers=46, num_key_value_heads=8,
    num_nextn_predict_layers=1, pad_token_id=151329, partial_rotary_factor=0.5, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=1000000, routed_scaling_factor=1.0, tie_word_embeddings=False, topk_group=1, use_qk_norm=False,
    vocab_size=151552,
)  # fmt: skip

GPT_OSS_20B = _published(
    "GptOssForCausalLM", "gpt_oss", attention_bias=True, eos_token_id=200002, experts_per_token=4, head_dim=64,
    hidden_act="silu", hidden_size=2880, initial_context_length=4096, intermediate_size=2880,
    layer_types=["sliding_attention", "full_attention"] * 12, max_position_embeddings=131072, num_attention_heads=64,
    num_experts_per_tok=4, num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32,
    output_router_logits=False, pad_token_id=199999, rms_norm_eps=1e-05, rope_theta=150000, router_aux_loss_coef=0.9,
    rope_scaling={
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    sliding_window=128, swiglu_limit=7.0, tie_word_embeddings=False, vocab_size=201088,
)  # fmt: skip

GPT_OSS_120B = GPT_OSS_20B | {
    "num_hidden_layers": 36, "num_local_experts": 128, "layer_types": ["sliding_attention", "full_attention"] * 18,
}  # fmt: skip

ALL = {
    "Llama-3.1-8B": LLAMA_3_1_8B,
    "Llama-2-7b": LLAMA_2_7B,
    "SmolLM2-135M": SMOLLM2_135M,
    "Mistral-7B-v0.1": MISTRAL_7B_V01,
    "Qwen2.5-7B": QWEN2_5_7B,
    "Qwen3-8B": QWEN3_8B,
    "gemma-2-2b": GEMMA_2_2B,
    "gemma-3-1b": GEMMA_3_1B,
    "Phi-3-mini-128k": PHI_3_MINI_128K,
    "Phi-4-mini": PHI_4_MINI,
    "OLMo-2-7B": OLMO_2_7B,
    "granite-3.1-2b": GRANITE_3_1_2B,
    "SmolLM3-3B": SMOLLM3_3B,
    "Mixtral-8x7B": MIXTRAL_8X7B,
    "Qwen1.5-MoE-A2.7B": QWEN1_5_MOE_A2_7B,
    "Qwen3-30B-A3B": QWEN3_30B_A3B,
    "OLMoE-1B-7B": OLMOE_1B_7B,
    "granite-3.0-1b-a400m": GRANITE_3_0_1B_A400M,
    "GLM-4.5-Air": GLM_4_5_AIR,
    "gpt-oss-20b": GPT_OSS_20B,
    "gpt-oss-120b": GPT_OSS_120B,
}


def respelled(config: Config) -> Config:
    """The same config in the newer spelling: `dtype`, and all rope settings in `rope_parameters`."""
    new = {key: value for key, value in config.items() if key not in ("torch_dtype", "rope_theta", "rope_scaling")}
    new["dtype"] = config["torch_dtype"]
    scaling = dict(config.get("rope_scaling") or {"rope_type": "default"})
    scaling["rope_type"] = scaling.pop("type", scaling.get("rope_type"))
    rope = scaling | {"rope_theta": config.get("rope_theta", 10000.0)}
    if "partial_rotary_factor" in new:
        rope["partial_rotary_factor"] = new.pop("partial_rotary_factor")
    if config["model_type"] == "gemma3_text":
        local = {"rope_type": "default", "rope_theta": new.pop("rope_local_base_freq")}
        rope = {"full_attention": rope, "sliding_attention": local}
        period = new.pop("sliding_window_pattern")
        kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(26)]
        new |= {"layer_types": kinds, "_sliding_window_pattern": period, "use_bidirectional_attention": False}
    return new | {"rope_parameters": rope}
