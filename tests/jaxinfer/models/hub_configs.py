"""config.json of well-known models as published; long lists of rope factors are replaced by formulas."""

from __future__ import annotations

from tests.jaxinfer.models.hub_moe_configs import (
    GLM_4_5_AIR,
    GPT_OSS_20B,
    GPT_OSS_120B,
    GRANITE_3_0_1B_A400M,
    MIXTRAL_8X7B,
    OLMOE_1B_7B,
    QWEN1_5_MOE_A2_7B,
    QWEN3_30B_A3B,
)
from tests.jaxinfer.models.respelling import Config, published

LLAMA_3_1_8B = published(
    "LlamaForCausalLM", "llama", attention_bias=False, bos_token_id=128000, eos_token_id=[128001, 128008, 128009],
    hidden_act="silu", hidden_size=4096, intermediate_size=14336, max_position_embeddings=131072, mlp_bias=False,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_theta=500000.0, tie_word_embeddings=False, vocab_size=128256,
    rope_scaling={
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)  # fmt: skip

LLAMA_2_7B = published(
    "LlamaForCausalLM", "llama", "float16", _name_or_path="meta-llama/Llama-2-7b-hf", bos_token_id=1, eos_token_id=2,
    hidden_act="silu", hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_scaling=None, tie_word_embeddings=False, vocab_size=32000,
)  # fmt: skip

SMOLLM2_135M = published(
    "LlamaForCausalLM", "llama", attention_bias=False, bos_token_id=0, eos_token_id=0, hidden_act="silu",
    hidden_size=576, intermediate_size=1536, is_llama_config=True, max_position_embeddings=8192,
    num_attention_heads=9, num_hidden_layers=30, num_key_value_heads=3, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_interleaved=False, rope_scaling=None, rope_theta=100000, tie_word_embeddings=True, vocab_size=49152,
)  # fmt: skip

MISTRAL_7B_V01 = published(
    "MistralForCausalLM", "mistral", bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096,
    intermediate_size=14336, max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-05, rope_theta=10000.0, sliding_window=4096, tie_word_embeddings=False,
    vocab_size=32000,
)  # fmt: skip

QWEN2_5_7B = published(
    "Qwen2ForCausalLM", "qwen2", bos_token_id=151643, eos_token_id=151645, hidden_act="silu", hidden_size=3584,
    intermediate_size=18944, max_position_embeddings=32768, max_window_layers=28, num_attention_heads=28,
    num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-06, rope_theta=1000000.0, sliding_window=131072,
    tie_word_embeddings=False, use_sliding_window=False, vocab_size=152064,
)  # fmt: skip

QWEN3_8B = published(
    "Qwen3ForCausalLM", "qwen3", attention_bias=False, bos_token_id=151643, eos_token_id=151645, head_dim=128,
    hidden_act="silu", hidden_size=4096, intermediate_size=12288, max_position_embeddings=40960, max_window_layers=36,
    num_attention_heads=32, num_hidden_layers=36, num_key_value_heads=8, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=1000000, sliding_window=None, tie_word_embeddings=False, use_sliding_window=False, vocab_size=151936,
)  # fmt: skip

GEMMA_2_2B = published(
    "Gemma2ForCausalLM", "gemma2", "float32", attention_bias=False, attn_logit_softcapping=50.0, bos_token_id=2,
    cache_implementation="hybrid", eos_token_id=1, final_logit_softcapping=30.0, head_dim=256,
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh", hidden_size=2304, intermediate_size=9216,
    max_position_embeddings=8192, num_attention_heads=8, num_hidden_layers=26, num_key_value_heads=4, pad_token_id=0,
    query_pre_attn_scalar=256, rms_norm_eps=1e-06, rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
)  # fmt: skip

GEMMA_3_1B = published(
    "Gemma3ForCausalLM", "gemma3_text", attention_bias=False, attn_logit_softcapping=None, bos_token_id=2,
    cache_implementation="hybrid", eos_token_id=[1, 106], final_logit_softcapping=None, head_dim=256,
    hidden_activation="gelu_pytorch_tanh", hidden_size=1152, intermediate_size=6912, max_position_embeddings=32768,
    num_attention_heads=4, num_hidden_layers=26, num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256,
    rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000, sliding_window=512,
    sliding_window_pattern=6, vocab_size=262144,
)  # fmt: skip

_PHI = published(
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

OLMO_2_7B = published(
    "Olmo2ForCausalLM", "olmo2", "float32", attention_bias=False, eos_token_id=100257, hidden_act="silu",
    hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-06, rope_scaling=None,
    rope_theta=500000, tie_word_embeddings=False, vocab_size=100352,
)  # fmt: skip

GRANITE_3_1_2B = published(
    "GraniteForCausalLM", "granite", attention_bias=False, attention_multiplier=0.015625, bos_token_id=0,
    embedding_multiplier=12.0, eos_token_id=0, hidden_act="silu", hidden_size=2048, intermediate_size=8192,
    logits_scaling=8.0, max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32, num_hidden_layers=40,
    num_key_value_heads=8, pad_token_id=0, residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None,
    rope_theta=5000000.0, tie_word_embeddings=True, vocab_size=49155,
) | {"attention_dropout": 0.1}  # fmt: skip

SMOLLM3_3B = published(
    "SmolLM3ForCausalLM", "smollm3", attention_bias=False, eos_token_id=128012, hidden_act="silu", hidden_size=2048,
    intermediate_size=11008, layer_types=["full_attention"] * 36, max_position_embeddings=65536, max_window_layers=28,
    mlp_bias=False, no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16,
    num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2, rms_norm_eps=1e-06,
    rope_scaling=None, rope_theta=5000000.0, sliding_window=None, use_sliding_window=False, vocab_size=128256,
)  # fmt: skip

EXAONE_4_32B = published(
    "Exaone4ForCausalLM", "exaone4", bos_token_id=1, eos_token_id=361, head_dim=128, hidden_act="silu",
    hidden_size=5120, intermediate_size=27392, layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 16,
    max_position_embeddings=131072, num_attention_heads=40, num_hidden_layers=64, num_key_value_heads=8, pad_token_id=0,
    rms_norm_eps=1e-05, rope_theta=1000000, sliding_window=4096, sliding_window_pattern="LLLG",
    tie_word_embeddings=False, vocab_size=102400,
    rope_scaling={
        "factor": 16.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)  # fmt: skip

SEED_OSS_36B = published(
    "SeedOssForCausalLM", "seed_oss", attention_bias=True, attention_out_bias=False, bos_token_id=0, eos_token_id=2,
    head_dim=128, hidden_act="silu", hidden_size=5120, intermediate_size=27648, max_position_embeddings=524288,
    mlp_bias=False, num_attention_heads=80, num_hidden_layers=64, num_key_value_heads=8, pad_token_id=1,
    residual_dropout=0.1, rms_norm_eps=1e-06, rope_scaling={"rope_type": "default"}, rope_theta=10000000.0,
    tie_word_embeddings=False, vocab_size=155136,
)  # fmt: skip

OLMO_3_7B = published(
    "Olmo3ForCausalLM", "olmo3", attention_bias=False, eos_token_id=100257, hidden_act="silu", hidden_size=4096,
    intermediate_size=11008, layer_types=(["sliding_attention"] * 3 + ["full_attention"]) * 8,
    max_position_embeddings=65536, num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
    pad_token_id=100277, rms_norm_eps=1e-06, rope_theta=500000, sliding_window=4096, tie_word_embeddings=False,
    vocab_size=100278,
    rope_scaling={
        "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0,
        "original_max_position_embeddings": 8192, "rope_type": "yarn",
    },
)  # fmt: skip

AFM_4_5B = published(
    "ArceeForCausalLM", "arcee", attention_bias=False, bos_token_id=128000, eos_token_id=128003, head_dim=128,
    hidden_act="relu2", hidden_size=2560, intermediate_size=18432, max_position_embeddings=65536, mlp_bias=False,
    num_attention_heads=20, num_hidden_layers=36, num_key_value_heads=4, rms_norm_eps=1e-05, rope_theta=10000.0,
    tie_word_embeddings=False, vocab_size=128004,
    rope_scaling={
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 20.0, "mscale": 1.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "type": "yarn",
    },
)  # fmt: skip

HUNYUAN_7B = published(
    "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", add_classification_head=False, attention_bias=False,
    attention_head_dim=128, bos_token_id=1, cla_share_factor=2, class_num=0, dense_list=[4096, 0], eod_token_id=3,
    eos_token_id=127960, head_dim=128, hidden_act="silu", hidden_size=4096, im_end_id=5, im_newline_id=11,
    im_start_id=4, intermediate_size=14336, mask_init_id=12, max_position_embeddings=32768, mlp_bias=False,
    norm_type="rms", num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, org_vocab_size=128167,
    pad_token_id=127961, pool_type="last", pretraining_tp=1, rms_norm_eps=1e-05, rope_theta=10000.0, text_end_id=7,
    text_start_id=6, tie_word_embeddings=True, use_cla=False, use_qk_norm=True, vocab_size=128167,
    rope_scaling={
        "alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "type": "dynamic",
    },
)  # fmt: skip

APERTUS_8B = published(
    "ApertusForCausalLM", "apertus", attention_bias=False, bos_token_id=1, eos_token_id=[68, 72], hidden_act="xielu",
    hidden_dropout=0.0, hidden_size=4096, intermediate_size=21504, max_position_embeddings=65536, mlp_bias=False,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=8, pad_token_id=3, post_norm=False, qk_norm=True,
    rms_norm_eps=1e-05, rope_theta=12000000, tie_word_embeddings=False, vocab_size=131072,
    rope_scaling={
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3", "type": "llama3",
    },
)  # fmt: skip

# The defaults of its class: at hand was no config.json of one.
GRANITE_SWA = published(
    "GraniteSWAForCausalLM", "granite_swa", attention_bias=False, attention_multiplier=1.0, bos_token_id=100257,
    embedding_multiplier=1.0, eos_token_id=100257, hidden_act="silu", hidden_size=2560, intermediate_size=8192,
    layer_rope_theta=None, layer_types=(["full_attention"] + ["sliding_attention"] * 3) * 6, logits_scaling=1.0,
    max_position_embeddings=8192, mlp_bias=False, num_attention_heads=20, num_hidden_layers=24, num_key_value_heads=4,
    residual_multiplier=1.0, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000.0, sliding_window=128,
    tie_word_embeddings=True, vocab_size=100352,
)  # fmt: skip


def _block(group: int | None, times: float | None) -> Config:
    attention = dict.fromkeys(("num_sink_tokens", "sparsify", "window_length"), None)
    attention |= {"unshifted_sink": False, "use_prefill_window_in_sink_attention": False}
    return {
        "attention": {"n_heads_in_group": group, "no_op": group is None, "replace_with_linear": False} | attention,
        "ffn": {"ffn_mult": times, "no_op": times is None, "replace_with_linear": False, "sparsify": None},
    }


# The first 12 of its 80 layers.
NEMOTRON_SUPER_49B = published(
    "DeciLMForCausalLM", "nemotron-nas", attention_bias=False, bos_token_id=128000,
    auto_map={"AutoModelForCausalLM": "modeling_decilm.DeciLMForCausalLM"}, eos_token_id=[128001, 128008, 128009],
    hidden_act="silu", hidden_size=8192, intermediate_size=None, max_position_embeddings=131072, mlp_bias=False,
    num_attention_heads=64, num_hidden_layers=12, num_key_value_heads=None, pretraining_tp=1, rms_norm_eps=1e-05,
    rope_theta=500000.0, tie_word_embeddings=False, vocab_size=128256,
    block_configs=[
        _block(8, 2.625), *([_block(8, 5.25)] * 5), *([_block(None, 2.625)] * 2), *([_block(8, 5.25)] * 3),
        _block(None, 3.28125),
    ],
    rope_scaling={
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
)  # fmt: skip

# Of several modalities. The vision towers' own settings are shortened: nothing reads them.
GEMMA_3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999, "eoi_token_index": 256000,
    "eos_token_id": [1, 106], "image_token_index": 262144, "initializer_range": 0.02, "mm_tokens_per_image": 256,
    "model_type": "gemma3", "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model", "patch_size": 14},
}  # fmt: skip

_MISTRAL_3 = {
    "architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
    "multimodal_projector_bias": False, "projector_hidden_act": "gelu", "spatial_merge_size": 2,
    "torch_dtype": "bfloat16", "vision_config": {"hidden_size": 1024, "model_type": "pixtral", "patch_size": 14},
    "vision_feature_layer": -1,
}  # fmt: skip

MISTRAL_SMALL_3_1 = _MISTRAL_3 | {
    "text_config": {
        "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
        "initializer_range": 0.02, "intermediate_size": 32768, "max_position_embeddings": 131072,
        "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 40, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05, "rope_theta": 1000000000.0, "sliding_window": None, "use_cache": True,
        "vocab_size": 131072,
    },
}  # fmt: skip

_MINISTRAL_3_TEXT = {
    "attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 262144, "model_type": "ministral3",
    "num_attention_heads": 32, "num_hidden_layers": 34, "num_key_value_heads": 8, "rms_norm_eps": 1e-05,
    "rope_parameters": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384, "rope_theta": 1000000.0,
        "rope_type": "yarn", "type": "yarn",
    },
    "sliding_window": None, "tie_word_embeddings": False, "use_cache": True, "vocab_size": 131072,
}  # fmt: skip
MINISTRAL_3_8B = _MISTRAL_3 | {"text_config": _MINISTRAL_3_TEXT}
# As transformers saves the text model of that one alone.
MINISTRAL_3_8B_TEXT = _MINISTRAL_3_TEXT | {"architectures": ["Ministral3ForCausalLM"], "torch_dtype": "bfloat16"}

QWEN2_5_VL_7B = published(
    "Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", bos_token_id=151643, eos_token_id=151645, hidden_act="silu",
    hidden_size=3584, image_token_id=151655, intermediate_size=18944, max_position_embeddings=128000,
    max_window_layers=28, num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4, rms_norm_eps=1e-06,
    rope_scaling={"mrope_section": [16, 24, 24], "type": "mrope"}, rope_theta=1000000.0, sliding_window=32768,
    tie_word_embeddings=False, use_sliding_window=False, video_token_id=151656,
    vision_config={"depth": 32, "hidden_size": 1280, "patch_size": 14}, vision_end_token_id=151653,
    vision_start_token_id=151652, vision_token_id=151654, vocab_size=152064,
)  # fmt: skip

QWEN3_VL_8B = {
    "architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151655, "model_type": "qwen3_vl",
    "text_config": {
        "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 151643, "dtype": "bfloat16",
        "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu", "hidden_size": 4096,
        "initializer_range": 0.02, "intermediate_size": 12288, "max_position_embeddings": 262144,
        "model_type": "qwen3_vl_text", "num_attention_heads": 32, "num_hidden_layers": 36, "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06, "rope_theta": 5000000, "use_cache": True, "vocab_size": 151936,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "tie_word_embeddings": False, "transformers_version": "4.57.0.dev0", "video_token_id": 151656,
    "vision_config": {"depth": 27, "hidden_size": 1152, "model_type": "qwen3_vl", "patch_size": 16},
    "vision_end_token_id": 151653, "vision_start_token_id": 151652,
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
    "gemma-3-4b": GEMMA_3_4B,
    "Mistral-Small-3.1": MISTRAL_SMALL_3_1,
    "Ministral-3-8B": MINISTRAL_3_8B,
    "Ministral-3-8B-text": MINISTRAL_3_8B_TEXT,
    "Qwen2.5-VL-7B": QWEN2_5_VL_7B,
    "Qwen3-VL-8B": QWEN3_VL_8B,
    "EXAONE-4.0-32B": EXAONE_4_32B,
    "Seed-OSS-36B": SEED_OSS_36B,
    "Olmo-3-7B": OLMO_3_7B,
    "AFM-4.5B": AFM_4_5B,
    "Hunyuan-7B": HUNYUAN_7B,
    "Apertus-8B": APERTUS_8B,
    "Nemotron-Super-49B": NEMOTRON_SUPER_49B,
    "granite-swa": GRANITE_SWA,
}
