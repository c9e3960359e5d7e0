"""Golden cases of models of several modalities, asked for text alone, and of Ministral 3, which some of them hold."""

from __future__ import annotations

from tests.goldens_lib.gemma_phi_cases import FULL, GEMMA_SCALES, SLIDING, gemma
from tests.goldens_lib.spec import CaseSpec, Config, base, flag, new, old, set_flag

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
# Of base(), what stands around text_config; ids of special tokens may stand in both.
_AROUND = ("architectures", "use_cache")


def inner(config: Config, **changes: object) -> Config:
    """The text model's part; a value of `...` leaves a key out."""
    text = {key: value for key, value in config.items() if key not in _AROUND} | changes
    return {key: value for key, value in text.items() if value is not ...}


def around(architecture: str, model_type: str, text: Config, vision: Config, **others: object) -> Config:
    """The config.json of the whole, in the spelling of transformers 5."""
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "dtype": "float32",
        "text_config": text,
        "vision_config": vision,
        **others,
    }


def text_rope(theta: float, key: str = "text_config.rope_parameters.rope_theta") -> Config:
    return set_flag(key, theta, name="rope_theta")


def gemma3_whole() -> CaseSpec:
    """Gemma 3 with a vision tower of one layer; the embedding is tied, which nothing in the file says."""
    text = gemma("-", "gemma3_text", head_dim=16, query_pre_attn_scalar=30, sliding_window=16)
    rope = {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "linear", "rope_theta": 20000.0, "factor": 2.0},
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "image_size": 8,
        "patch_size": 4,
        "vision_use_head": False,
    }
    config = around(
        "Gemma3ForConditionalGeneration", "gemma3", inner(text, rope_parameters=rope,
        layer_types=[SLIDING, SLIDING, FULL, SLIDING]), vision, mm_tokens_per_image=4, image_token_index=130,
        boi_token_index=128, eoi_token_index=129, eos_token_id=[1, 106],
    )  # fmt: skip
    old_text = inner(
        text,
        rope_scaling={"rope_type": "linear", "factor": 2.0},
        rope_theta=20000.0,
        rope_local_base_freq=100.0,
        sliding_window_pattern=3,
    )
    alt = {key: value for key, value in config.items() if key != "dtype"}
    return CaseSpec(
        name="gemma3_whole",
        config=config,
        config_alt=alt | {"text_config": old_text, "torch_dtype": "float32"},
        norm_offset=True,
        scales=GEMMA_SCALES | {r"language_model\.norm\.weight": 5.0},
        others=r"model\.(vision_tower|multi_modal_projector)\.",
        flags=(
            text_rope(100.0, f"text_config.rope_parameters.{FULL}.rope_theta"),
            set_flag("text_config.sliding_window", 400),
            set_flag("text_config.query_pre_attn_scalar", 16),
            flag("query_norm", tensor_zeros=r"q_norm\.weight$"),
        ),
    )


_PIXTRAL: Config = {
    "model_type": "pixtral",
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 8,
    "patch_size": 4,
    "head_dim": 4,
}


def mistral3() -> CaseSpec:
    """A Mistral in a Mistral 3, with an output matrix of its own, as the keys around text_config say."""
    text = base("-", "mistral", head_dim=20, sliding_window=None, vocab_size=127, tie_word_embeddings=...)
    others: Config = {
        "image_token_index": 10,
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "vision_feature_layer": -1,
    }
    names = ("Mistral3ForConditionalGeneration", "mistral3")
    config = around(*names, inner(text, rope_parameters=DEFAULT_ROPE), _PIXTRAL, **others, tie_word_embeddings=False)
    alt = {key: value for key, value in config.items() if key != "dtype"}
    return CaseSpec(
        name="mistral3",
        config=config,
        config_alt=alt | {"text_config": inner(text, rope_theta=10000.0), "torch_dtype": "float32"},
        others=r"model\.(vision_tower|multi_modal_projector)\.",
        flags=(
            text_rope(500.0),
            set_flag("text_config.rms_norm_eps", 0.1),
            set_flag("tie_word_embeddings", True) | {"drop": ["lm_head.weight"]},
        ),
    )


def ministral3() -> CaseSpec:
    """Trained to 16 tokens, stretched by 8; queries of token 16 on grow. Of the two keys that say how far, the one in
    the rope settings counts."""
    config = base("Ministral3ForCausalLM", "ministral3", head_dim=20, sliding_window=None, vocab_size=113)
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "original_max_position_embeddings": 16,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.4,
    }
    return CaseSpec(
        name="ministral3",
        config=new(config, rope),
        config_alt=old(config, theta=10000.0, scaling={k: v for k, v in rope.items() if k != "rope_theta"}),
        scales={r"[qk]_proj": 0.12},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("rope_parameters.llama_4_scaling_beta", 0.0, name="query_scaling"),
            set_flag("rope_parameters.original_max_position_embeddings", 32),
            set_flag("rope_parameters.factor", 2.0),
            set_flag("rope_parameters.mscale", 3.0),
            set_flag("rope_parameters.rope_theta", 500.0),
        ),
    )


def qwen2_5_vl() -> CaseSpec:
    """mrope with sections of 2, 3 and 3 of the 8 pairs of a head; the older spelling has no text_config."""
    text = base("-", "qwen2_5_vl_text", rms_norm_eps=1e-6, vocab_size=139, use_sliding_window=False,
                sliding_window=16, max_window_layers=1)  # fmt: skip
    vision = {
        "model_type": "qwen2_5_vl_vision",
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "fullatt_block_indexes": [0],
    }
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3]}
    tokens: Config = {
        "image_token_id": 130,
        "video_token_id": 131,
        "vision_start_token_id": 132,
        "vision_end_token_id": 133,
    }
    names = ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl")
    around_text = around(*names, inner(text, rope_parameters=rope | {"rope_theta": 10000.0}), vision, **tokens)
    flat = around_text | text | {"architectures": [names[0]], "model_type": names[1], "torch_dtype": "float32"}
    flat |= {"rope_theta": 10000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    for key in ("text_config", "dtype"):
        del flat[key]
    return CaseSpec(
        name="qwen2_5_vl",
        config=around_text,
        config_alt=flat,
        others=r"model\.visual\.",
        flags=(
            text_rope(500.0),
            flag("query_bias", tensor_zeros=r"language_model.*q_proj\.bias$"),
            flag("value_bias", tensor_zeros=r"language_model.*v_proj\.bias$"),
            set_flag("tie_word_embeddings", True) | {"drop": ["lm_head.weight"]},
        ),
    )


def qwen3_vl() -> CaseSpec:
    """Interleaved mrope with sections of 4, 3 and 3 of the 10 pairs of a head."""
    text = base("-", "qwen3_vl_text", rms_norm_eps=1e-6, head_dim=20, vocab_size=131, attention_bias=False,
                tie_word_embeddings=True)  # fmt: skip
    vision = {
        "model_type": "qwen3_vl_vision",
        "depth": 1,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 4,
        "num_position_embeddings": 4,
        "deepstack_visual_indexes": [0],
    }
    rope = {"rope_type": "default", "mrope_section": [4, 3, 3], "mrope_interleaved": True}
    tokens: Config = {
        "image_token_id": 126,
        "video_token_id": 127,
        "vision_start_token_id": 128,
        "vision_end_token_id": 129,
    }
    names = ("Qwen3VLForConditionalGeneration", "qwen3_vl")
    config = around(
        *names, inner(text, rope_parameters=rope | {"rope_theta": 10000.0}), vision, **tokens, tie_word_embeddings=True
    )
    alt = {key: value for key, value in config.items() if key != "dtype"} | {"torch_dtype": "float32"}
    alt |= {"text_config": inner(text, rope_scaling=rope, rope_theta=10000.0)}
    return CaseSpec(
        name="qwen3_vl",
        config=config,
        config_alt=alt,
        scales={r"embed_tokens": 0.12},
        others=r"model\.visual\.",
        flags=(
            text_rope(500.0),
            flag("query_norm", tensor_ones=r"language_model.*q_norm\.weight$"),
            flag("key_norm", tensor_ones=r"language_model.*k_norm\.weight$"),
        ),
    )


def wrapper_cases() -> list[CaseSpec]:
    return [gemma3_whole(), mistral3(), ministral3(), qwen2_5_vl(), qwen3_vl()]
