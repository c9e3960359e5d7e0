"""Published sizes of models (config.json of each), by the name that scripts take. Standard library only."""

from __future__ import annotations

from typing import Any

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
_GLM_MOE: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"], "model_type": "glm4_moe", "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5,
    "rope_theta": 1000000.0, "partial_rotary_factor": 0.5, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "attention_bias": True, "use_qk_norm": False, "tie_word_embeddings": False,
}  # fmt: skip
_QWEN3: dict[str, Any] = {
    "torch_dtype": "bfloat16", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "vocab_size": 32000, "hidden_size": 1024,
    "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "llama3-8b": _LLAMA | {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "llama3-70b": _LLAMA | {
        "vocab_size": 128256, "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    },
    "llama3.2-1b": _LLAMA | {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama-0.3b": _LLAMA | {  # what benchmarks on a CPU run
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 20,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    },
    "qwen3moe-0.5b": _QWEN3 | {  # experts for benchmarks on a CPU: 8 of 64 are active
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "intermediate_size": 2048,
        "num_experts": 64, "num_experts_per_tok": 8, "moe_intermediate_size": 256, "norm_topk_prob": True,
        "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "qwen3-0.1b": _QWEN3 | {  # its dense twin: as wide as the eight experts of a token
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "intermediate_size": 2048,
    },
    "small-128": _LLAMA | {  # a few layers with the head size of the large ones: compiles in seconds
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 4096,
    },
    "small-moe-128": _GLM_MOE | {  # a dense layer, then experts beside a shared one; compiles in seconds
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 4096,
        "n_routed_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 1024, "n_shared_experts": 1,
        "first_k_dense_replace": 1, "routed_scaling_factor": 1.0,
    },
    "tiny": _LLAMA | {  # for rehearsals on a CPU
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
    },
}  # fmt: skip
