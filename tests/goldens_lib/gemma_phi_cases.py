"""Golden cases of Gemma 2 and 3 (windows, soft caps, two ropes) and of Phi 3 and 4 (fused weights, longrope)."""

from __future__ import annotations

from tests.goldens_lib.spec import CaseSpec, Config, base, flag, new, old, set_flag, tie, untie

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING, FULL = "sliding_attention", "full_attention"

# The embedding is tied and multiplied by sqrt(hidden_size): drawn larger, the residual stream would stay so close to
# the last token that greedy decoding repeats it for ever. The norms that end a block draw (1 + w) from -1.5 to 3.5.
GEMMA_SCALES = {r"embed_tokens": 0.08, r"(post_\w+_layernorm|model\.norm)\.weight": 5.0}


def norms_to_init() -> tuple[dict[str, object], ...]:
    """Each of the four norms of a Gemma layer, and the final one, as if its weight had not been read: 1 + 0."""
    names = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    layers = [flag(f"{name}_layernorm", tensor_zeros=rf"\.{name}_layernorm\.weight$") for name in names]
    return (*layers, flag("final_norm", tensor_zeros=r"^model\.norm\.weight$"))


def gemma(architecture: str, model_type: str, **overrides: object) -> Config:
    """Gemma configs name the activation `hidden_activation` and leave out that the embedding is tied."""
    changes = {"hidden_act": ..., "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": ...}
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
    fixed = {"attention_bias": False, "rms_norm_eps": 1e-6, "num_hidden_layers": 4}
    return base(architecture, model_type, **changes, **ids, **fixed, **overrides)


def gemma2() -> CaseSpec:
    """Layers 0 and 2 see 20 tokens; attention logits capped at 2.5 and logits at 4; queries scaled by 40^-0.5."""
    config = gemma(
        "Gemma2ForCausalLM", "gemma2", head_dim=24, query_pre_attn_scalar=40, attn_logit_softcapping=2.5,
        final_logit_softcapping=4.0, sliding_window=20,
    )  # fmt: skip
    return CaseSpec(
        name="gemma2",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE, layer_types=[SLIDING, FULL, SLIDING, FULL]),
        norm_offset=True,
        scales=GEMMA_SCALES,
        tensor_parallel=(1, 2),
        flags=(
            set_flag("attn_logit_softcapping", None),
            set_flag("final_logit_softcapping", None),
            set_flag("query_pre_attn_scalar", 24),
            set_flag("sliding_window", 400),
            set_flag("sliding_window", 21, name="sliding_window+1"),
            set_flag("layer_types", [FULL, SLIDING, FULL, SLIDING], name="layers_swapped"),
            set_flag("hidden_activation", "silu"),
            set_flag("rope_theta", 500.0),
            untie(131, 64),
            *norms_to_init(),
        ),
    )


def gemma3() -> list[CaseSpec]:
    """Norms on query and key; windowed layers rotate with another theta; linear scaling reaches full layers only."""
    names = ("Gemma3ForCausalLM", "gemma3_text")
    config = gemma(*names, head_dim=16, query_pre_attn_scalar=30, sliding_window=16)
    rope = {
        SLIDING: {"rope_type": "default", "rope_theta": 100.0},
        FULL: {"rope_type": "default", "rope_theta": 20000.0},
    }
    layers = [SLIDING, SLIDING, FULL, SLIDING]
    linear = gemma(*names, head_dim=20, query_pre_attn_scalar=12, sliding_window=24, vocab_size=109, hidden_size=56)
    linear_rope = {
        SLIDING: {"rope_type": "default", "rope_theta": 500.0},
        FULL: {"rope_type": "linear", "rope_theta": 5000.0, "factor": 8.0},
    }
    return [
        CaseSpec(
            name="gemma3",
            config=new(config, rope, layer_types=layers),
            config_alt=old(config, theta=20000.0, rope_local_base_freq=100.0, sliding_window_pattern=3),
            norm_offset=True,
            scales=GEMMA_SCALES,
            flags=(
                set_flag(f"rope_parameters.{SLIDING}.rope_theta", 20000.0, name="local_theta"),
                set_flag(f"rope_parameters.{FULL}.rope_theta", 100.0, name="global_theta"),
                set_flag("sliding_window", 400),
                set_flag("sliding_window", 17, name="sliding_window+1"),
                set_flag("layer_types", [FULL, SLIDING, SLIDING, SLIDING], name="layer_types"),
                set_flag("query_pre_attn_scalar", 16),
                set_flag("hidden_activation", "silu"),
                flag("query_norm", tensor_zeros=r"q_norm\.weight$"),
                flag("key_norm", tensor_zeros=r"k_norm\.weight$"),
                untie(131, 64),
                *norms_to_init(),
            ),
        ),
        CaseSpec(
            name="gemma3_linear",
            config=old(
                linear,
                theta=5000.0,
                scaling={"rope_type": "linear", "factor": 8.0},
                rope_local_base_freq=500.0,
                sliding_window_pattern=2,
            ),
            config_alt=new(linear, linear_rope, layer_types=[SLIDING, FULL, SLIDING, FULL]),
            norm_offset=True,
            scales=GEMMA_SCALES,
            flags=(
                set_flag("rope_scaling.factor", 2.0),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0, name="global_theta"),
                set_flag("rope_local_base_freq", 5000.0, name="local_theta"),
                set_flag("sliding_window_pattern", 4),
                set_flag("query_pre_attn_scalar", 20),
            ),
        ),
    ]


def phi3() -> list[CaseSpec]:
    """Fused qkv and gate-up weights: with a window, and with half of each head left unrotated."""
    window = base("Phi3ForCausalLM", "phi3", sliding_window=24, vocab_size=129)
    partial = base("Phi3ForCausalLM", "phi3", sliding_window=None, vocab_size=105, hidden_size=48, num_hidden_layers=2)
    return [
        CaseSpec(
            name="phi3",
            config=old(window, theta=10000.0),
            config_alt=new(window, DEFAULT_ROPE | {"partial_rotary_factor": 1.0}),
            tensor_parallel=(1, 2),
            flags=(
                set_flag("sliding_window", None),
                set_flag("sliding_window", 25, name="sliding_window+1"),
                set_flag("rope_theta", 500.0),
                set_flag("partial_rotary_factor", 0.5),
                tie(),
            ),
        ),
        CaseSpec(
            name="phi3_partial",
            config=new(partial, DEFAULT_ROPE | {"partial_rotary_factor": 0.5}),
            config_alt=old(partial, theta=10000.0, partial_rotary_factor=0.5),
            flags=(
                set_flag("rope_parameters.partial_rotary_factor", 1.0),
                set_flag("rope_parameters.rope_theta", 100.0),
            ),
        ),
    ]


def phi_longrope() -> list[CaseSpec]:
    """Trained to 64 tokens: prompts of 5 and 37 pass that border while 64 tokens are decoded, one of 90 starts past it.

    The magnitude factor is sqrt(1 + ln(256 / 64) / ln 64) unless attention_factor is given. Phi-4 mini rotates three
    quarters of a head, ties its embedding and names a window longer than any sequence here.
    """
    lengths = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    config = base("Phi3ForCausalLM", "phi3", num_key_value_heads=4, vocab_size=121, sliding_window=None, **lengths)
    short = [1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.6]
    long = [1.1, 1.4, 2.0, 3.0, 4.5, 6.0, 8.0, 9.0]
    factors = {"short_factor": short, "long_factor": long}
    mini = base(
        "Phi3ForCausalLM", "phi3", vocab_size=101, hidden_size=96, num_hidden_layers=2, sliding_window=400,
        tie_word_embeddings=True, attention_bias=False, intermediate_size=123, **lengths,
    )  # fmt: skip
    mini_factors = {
        "short_factor": [1.0, 1.0, 1.1, 1.1, 1.2, 1.3, 1.3, 1.4, 1.5],  # 24 * 0.75 / 2 of them
        "long_factor": [1.2, 1.5, 2.0, 3.0, 4.0, 4.5, 5.0, 6.0, 7.0],
    }
    longrope = {"rope_type": "longrope", "rope_theta": 10000.0}
    whole_head = longrope | {key: [*values, 1.5, 1.5, 1.5] for key, values in mini_factors.items()}
    return [
        CaseSpec(
            name="phi3_longrope",
            config=old(config, theta=10000.0, scaling={"type": "longrope"} | factors),
            config_alt=new(config, longrope | factors),
            tensor_parallel=(1, 2),
            flags=(
                set_flag("rope_scaling.short_factor", [1.5] * 8),
                set_flag("rope_scaling.long_factor", short),
                set_flag("rope_scaling.attention_factor", 1.0),
                set_flag("rope_scaling.factor", 16.0, name="attention_factor_from_factor"),
                set_flag("original_max_position_embeddings", 128),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0),
            ),
        ),
        CaseSpec(
            name="phi4_mini",
            config=new(mini, longrope | mini_factors | {"partial_rotary_factor": 0.75}),
            config_alt=old(
                mini, theta=10000.0, scaling={"type": "longrope"} | mini_factors, partial_rotary_factor=0.75
            ),
            scales={r"embed_tokens": 0.12, r"qkv_proj": 0.12},
            flags=(
                flag("partial_rotary_factor", set={"rope_parameters": whole_head}),
                set_flag("rope_parameters.long_factor", mini_factors["short_factor"]),
                set_flag("rope_parameters.short_factor", [2.0] * 9),
                set_flag("max_position_embeddings", 4096, name="attention_factor_from_lengths"),
                untie(101, 96),
            ),
        ),
    ]


def gemma_phi_cases() -> list[CaseSpec]:
    return [gemma2(), *gemma3(), *phi3(), *phi_longrope()]
