"""Golden cases of the other families: Qwen 2 and 3, OLMo 2, Granite, SmolLM3."""

from __future__ import annotations

from tests.goldens_lib.spec import LAYER_NORMS, CaseSpec, Config, base, flag, new, old, set_flag, tie, untie

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}


def qwen2() -> list[CaseSpec]:
    """Biases on query, key and value only; a window that is switched off; one that starts at layer 1; yarn."""
    plain = base(
        "Qwen2ForCausalLM", "qwen2", rms_norm_eps=1e-6, vocab_size=139,
        use_sliding_window=False, sliding_window=16, max_window_layers=1,
    )  # fmt: skip
    window = base(
        "Qwen2ForCausalLM", "qwen2", rms_norm_eps=1e-6, vocab_size=107, hidden_size=56, tie_word_embeddings=True,
        use_sliding_window=True, sliding_window=20,
    )  # fmt: skip
    yarn = base(
        "Qwen2ForCausalLM", "qwen2", rms_norm_eps=1e-6, vocab_size=97, use_sliding_window=False,
        num_hidden_layers=2, max_position_embeddings=256,
    )  # fmt: skip
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.4}
    rope = {"rope_type": "yarn", "rope_theta": 1000000.0} | {k: v for k, v in scaling.items() if k != "type"}
    return [
        CaseSpec(
            name="qwen2",
            config=new(plain, DEFAULT_ROPE),
            generation_config={"bos_token_id": 1, "eos_token_id": [2, 3], "repetition_penalty": 1.05, "top_k": 20},
            flags=(
                flag("query_bias", tensor_zeros=r"q_proj\.bias$"),
                flag("key_bias", tensor_zeros=r"k_proj\.bias$"),
                flag("value_bias", tensor_zeros=r"v_proj\.bias$"),
                set_flag("rope_parameters.rope_theta", 500.0),
                set_flag("use_sliding_window", True),
                tie(),
            ),
        ),
        CaseSpec(
            name="qwen2_window",
            config=old(window, theta=10000.0, max_window_layers=1),
            config_alt=new(window, DEFAULT_ROPE, layer_types=["full_attention"] + ["sliding_attention"] * 2),
            scales={r"embed_tokens": 0.12},
            flags=(
                set_flag("use_sliding_window", False),
                set_flag("max_window_layers", 0, name="max_window_layers-1"),
                set_flag("max_window_layers", 2, name="max_window_layers+1"),
                set_flag("sliding_window", 21, name="sliding_window+1"),
                set_flag("rope_theta", 500.0),
                untie(107, 56),
            ),
        ),
        CaseSpec(
            name="qwen2_yarn",
            config=old(yarn, theta=1000000.0, scaling=scaling),
            config_alt=new(yarn, rope),
            scales={r"[qk]_proj": 0.12},  # the attention factor counts twice, in queries and in keys
            flags=(
                flag("attention_factor", unset=["rope_scaling.attention_factor"]),
                set_flag("rope_scaling.factor", 2.0),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0),
            ),
        ),
    ]


def qwen3() -> CaseSpec:
    """Query and key normed per head, with one weight per element of the head; head_dim on its own; tied."""
    config = base(
        "Qwen3ForCausalLM", "qwen3", rms_norm_eps=1e-6, head_dim=20, vocab_size=131, tie_word_embeddings=True,
        attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=3,
    )  # fmt: skip
    return CaseSpec(
        name="qwen3",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE),
        scales={r"embed_tokens": 0.12},
        tensor_parallel=(1, 2),
        flags=(
            flag("query_norm", tensor_ones=r"q_norm\.weight$"),
            flag("key_norm", tensor_ones=r"k_norm\.weight$"),
            flag("query_and_key_norm", tensor_ones=r"[qk]_norm\.weight$"),
            set_flag("rope_theta", 500.0),
            set_flag("rms_norm_eps", 0.1),
            untie(131, 64),
        ),
    )


def olmo2() -> CaseSpec:
    """Query and key normed whole, before they are split into heads; norms after attention and MLP only."""
    config = base("Olmo2ForCausalLM", "olmo2", rms_norm_eps=1e-6, vocab_size=119, attention_bias=False)
    return CaseSpec(
        name="olmo2",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE),
        flags=(
            flag("query_norm", tensor_ones=r"q_norm\.weight$"),
            flag("key_norm", tensor_ones=r"k_norm\.weight$"),
            flag("attention_post_norm", tensor_ones=r"post_attention_layernorm\.weight$"),
            flag("mlp_post_norm", tensor_ones=r"post_feedforward_layernorm\.weight$"),
            set_flag("rope_theta", 500.0),
            tie(),
        ),
    )


def granite() -> CaseSpec:
    """Four multipliers, none at the value that would hide it: 1, or 1 / sqrt(head_dim) = 0.25 for attention."""
    config = base(
        "GraniteForCausalLM", "granite", vocab_size=149, tie_word_embeddings=True, attention_bias=False,
        mlp_bias=False, embedding_multiplier=2.0, residual_multiplier=0.7, attention_multiplier=0.375,
        logits_scaling=0.75,
    )  # fmt: skip
    return CaseSpec(
        name="granite",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE),
        scales={r"embed_tokens": 0.1, r"[qk]_proj": 0.12},
        flags=(
            set_flag("embedding_multiplier", 1.0),
            set_flag("residual_multiplier", 1.0),
            set_flag("attention_multiplier", 0.25),
            set_flag("logits_scaling", 1.0),
            set_flag("rope_theta", 500.0),
            untie(149, 64),
        ),
    )


def smollm3() -> CaseSpec:
    """Layers 1 and 3 of four do not rotate at all (a 0 in no_rope_layers means: no rope here)."""
    config = base(
        "SmolLM3ForCausalLM", "smollm3", rms_norm_eps=1e-6, vocab_size=111, hidden_size=48, num_hidden_layers=4,
        tie_word_embeddings=True, attention_bias=False, mlp_bias=False, use_sliding_window=False,
    )  # fmt: skip
    return CaseSpec(
        name="smollm3",
        config=old(config, theta=10000.0, no_rope_layers=[1, 0, 1, 0]),
        config_alt=new(config, DEFAULT_ROPE, no_rope_layer_interval=2),
        scales={r"embed_tokens": 0.12},
        flags=(
            set_flag("no_rope_layers", [1, 1, 1, 1], name="all_layers_rotate"),
            set_flag("no_rope_layers", [0, 0, 0, 0], name="no_layer_rotates"),
            set_flag("no_rope_layers", [0, 1, 0, 1], name="layers_swapped"),
            set_flag("rope_theta", 500.0),
            flag("layer_norms", tensor_ones=LAYER_NORMS),
        ),
    )


def family_cases() -> list[CaseSpec]:
    return [*qwen2(), qwen3(), olmo2(), granite(), smollm3()]
