"""config.json of well-known mixtures of experts as published."""

from __future__ import annotations

from tests.jaxinfer.models.respelling import published

MIXTRAL_8X7B = published(
    "MixtralForCausalLM", "mixtral", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_experts_per_tok=2,
    num_hidden_layers=32, num_key_value_heads=8, num_local_experts=8, output_router_logits=False, rms_norm_eps=1e-05,
    rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None, tie_word_embeddings=False, vocab_size=32000,
)  # fmt: skip

QWEN1_5_MOE_A2_7B = published(
    "Qwen2MoeForCausalLM", "qwen2_moe", bos_token_id=151643, decoder_sparse_step=1, eos_token_id=151643,
    hidden_act="silu", hidden_size=2048, intermediate_size=5632, max_position_embeddings=8192, max_window_layers=21,
    moe_intermediate_size=1408, norm_topk_prob=False, num_attention_heads=16, num_experts=60, num_experts_per_tok=4,
    num_hidden_layers=24, num_key_value_heads=16, output_router_logits=False, qkv_bias=True, rms_norm_eps=1e-06,
    rope_theta=1000000.0, router_aux_loss_coef=0.001, shared_expert_intermediate_size=5632, sliding_window=32768,
    tie_word_embeddings=False, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip

QWEN3_30B_A3B = published(
    "Qwen3MoeForCausalLM", "qwen3_moe", attention_bias=False, bos_token_id=151643, decoder_sparse_step=1,
    eos_token_id=151645, head_dim=128, hidden_act="silu", hidden_size=2048, intermediate_size=6144,
    max_position_embeddings=40960, max_window_layers=48, mlp_only_layers=[], moe_intermediate_size=768,
    norm_topk_prob=True, num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
    num_key_value_heads=4, output_router_logits=False, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=1000000.0,
    router_aux_loss_coef=0.001, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False,
    vocab_size=151936,
)  # fmt: skip

OLMOE_1B_7B = published(
    "OlmoeForCausalLM", "olmoe", attention_bias=False, clip_qkv=None, eos_token_id=50279, hidden_act="silu",
    hidden_size=2048, intermediate_size=1024, max_position_embeddings=4096, norm_topk_prob=False,
    num_attention_heads=16, num_experts=64, num_experts_per_tok=8, num_hidden_layers=16, num_key_value_heads=16,
    output_router_logits=False, pad_token_id=1, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0,
    router_aux_loss_coef=0.01, tie_word_embeddings=False, vocab_size=50304,
)  # fmt: skip

GRANITE_3_0_1B_A400M = published(
    "GraniteMoeForCausalLM", "granitemoe", attention_bias=False, attention_multiplier=0.015625, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", hidden_size=1024, intermediate_size=512,
    logits_scaling=6.0, max_position_embeddings=4096, num_attention_heads=16, num_experts_per_tok=8,
    num_hidden_layers=24, num_key_value_heads=8, num_local_experts=32, output_router_logits=False, pad_token_id=0,
    residual_multiplier=0.22, rms_norm_eps=1e-06, rope_scaling=None, rope_theta=10000, router_aux_loss_coef=0.0,
    tie_word_embeddings=True, vocab_size=49155,
)  # fmt: skip

GLM_4_5_AIR = published(
    "Glm4MoeForCausalLM", "glm4_moe", attention_bias=True, eos_token_id=[151329, 151336, 151338],
    first_k_dense_replace=1, head_dim=128, hidden_act="silu", hidden_size=4096, intermediate_size=10944,
    max_position_embeddings=131072, moe_intermediate_size=1408, n_group=1, n_routed_experts=128, n_shared_experts=1,
    norm_topk_prob=True, num_attention_heads=96, num_experts_per_tok=8, num_hidden_layers=46, num_key_value_heads=8,
    num_nextn_predict_layers=1, pad_token_id=151329, partial_rotary_factor=0.5, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=1000000, routed_scaling_factor=1.0, tie_word_embeddings=False, topk_group=1, use_qk_norm=False,
    vocab_size=151552,
)  # fmt: skip

GPT_OSS_20B = published(
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
