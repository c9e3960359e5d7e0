"""Golden cases of mixtures of experts."""

from __future__ import annotations

from tests.goldens_lib.spec import CaseSpec, Config, base, flag, new, old, set_flag

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
# A router whose products spread by about 1: experts differ from token to token, and none is chosen by a hair.
ROUTER = {r"(gate|router\.layer|router)\.weight$": 0.3}
EXPERTS = {r"input_linear|output_linear|experts\.(gate_up|down)_proj$": 0.15, r"experts\.\d+\.w": 0.15}
SCALES = {**ROUTER, **EXPERTS}


def mixtral() -> CaseSpec:
    config = base(
        "MixtralForCausalLM", "mixtral", num_local_experts=5, num_experts_per_tok=2, sliding_window=None,
        router_aux_loss_coef=0.02, output_router_logits=False, intermediate_size=45, num_hidden_layers=2,
    )  # fmt: skip
    return CaseSpec(
        name="mixtral",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE),
        scales=SCALES,
        tensor_parallel=(1, 2),
        flags=(
            set_flag("num_experts_per_tok", 1),
            set_flag("num_experts_per_tok", 3, name="num_experts_per_tok+1"),
            set_flag("sliding_window", 20),
        ),
    )


def qwen2_moe() -> CaseSpec:
    """A shared expert behind its gate, a dense layer in the middle, weights that do not sum to 1."""
    config = base(
        "Qwen2MoeForCausalLM", "qwen2_moe", rms_norm_eps=1e-6, num_experts=6, num_experts_per_tok=2,
        moe_intermediate_size=33, shared_expert_intermediate_size=50, norm_topk_prob=False, decoder_sparse_step=1,
        mlp_only_layers=[1], use_sliding_window=False, sliding_window=None, qkv_bias=True, max_window_layers=3,
    )  # fmt: skip
    return CaseSpec(
        name="qwen2_moe",
        config=new(config, DEFAULT_ROPE),
        scales={r"shared_expert_gate": 0.3, **SCALES},
        flags=(
            set_flag("norm_topk_prob", True),
            set_flag("num_experts_per_tok", 3, name="num_experts_per_tok+1"),
            flag("shared_expert_gate", tensor_zeros=r"shared_expert_gate"),
            flag("shared_expert", tensor_zeros=r"shared_expert\.down_proj"),
        ),
    )


def qwen3_moe() -> CaseSpec:
    config = base(
        "Qwen3MoeForCausalLM", "qwen3_moe", rms_norm_eps=1e-6, head_dim=20, num_experts=7, num_experts_per_tok=3,
        moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[],
        attention_bias=False, use_sliding_window=False, sliding_window=None, max_window_layers=3,
        tie_word_embeddings=True, num_hidden_layers=2,
    )  # fmt: skip
    return CaseSpec(
        name="qwen3_moe",
        config=new(config, DEFAULT_ROPE),
        scales={r"embed_tokens": 0.12, **SCALES},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("norm_topk_prob", False),
            set_flag("num_experts_per_tok", 2, name="num_experts_per_tok-1"),
            flag("q_norm", tensor_ones=r"q_norm"),
        ),
    )


def olmoe() -> CaseSpec:
    config = base(
        "OlmoeForCausalLM", "olmoe", num_experts=6, num_experts_per_tok=2, norm_topk_prob=False, clip_qkv=None,
        attention_bias=False, intermediate_size=33, num_hidden_layers=2, pad_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return CaseSpec(
        name="olmoe",
        config=new(config, DEFAULT_ROPE),
        scales=SCALES,
        flags=(
            set_flag("norm_topk_prob", True),
            set_flag("num_experts_per_tok", 3, name="num_experts_per_tok+1"),
            flag("k_norm", tensor_ones=r"k_norm"),
        ),
    )


def granite_moe() -> list[CaseSpec]:
    """The best products first, then their softmax; four multipliers; with and without a shared expert."""
    multipliers: Config = {
        "attention_multiplier": 0.4, "embedding_multiplier": 3.0, "residual_multiplier": 0.6, "logits_scaling": 2.0,
    }  # fmt: skip
    plain = base(
        "GraniteMoeForCausalLM", "granitemoe", num_local_experts=5, num_experts_per_tok=2, intermediate_size=33,
        attention_bias=False, num_hidden_layers=2, **multipliers,
    )  # fmt: skip
    shared = {
        **plain, "architectures": ["GraniteMoeSharedForCausalLM"], "model_type": "granitemoeshared",
        "shared_intermediate_size": 21,
    }  # fmt: skip
    return [
        CaseSpec(
            name="granite_moe",
            config=new(plain, DEFAULT_ROPE),
            scales=SCALES,
            flags=(
                set_flag("num_experts_per_tok", 3, name="num_experts_per_tok+1"),
                *(set_flag(name, 1.0) for name in multipliers),
            ),
        ),
        CaseSpec(
            name="granite_moe_shared",
            config=new(shared, DEFAULT_ROPE),
            scales=SCALES,
            flags=(
                flag("shared_expert", tensor_zeros=r"shared_mlp\.output_linear"),
                set_flag("num_experts_per_tok", 1, name="num_experts_per_tok-1"),
            ),
        ),
    ]


def glm4_moe() -> CaseSpec:
    """A sigmoid router with groups, correction and a factor; a dense layer first; half of each head rotates."""
    config = base(
        "Glm4MoeForCausalLM", "glm4_moe", n_routed_experts=8, num_experts_per_tok=3, n_group=4, topk_group=2,
        moe_intermediate_size=24, n_shared_experts=2, routed_scaling_factor=1.8, norm_topk_prob=True,
        first_k_dense_replace=1, attention_bias=True, use_qk_norm=True, head_dim=20,
    )  # fmt: skip
    rope = {**DEFAULT_ROPE, "partial_rotary_factor": 0.5}
    return CaseSpec(
        name="glm4_moe",
        config=new(config, rope),
        config_alt=old(config, theta=10000.0, partial_rotary_factor=0.5),
        scales={r"embed_tokens": 0.2, **SCALES},
        flags=(
            set_flag("norm_topk_prob", False),
            set_flag("routed_scaling_factor", 1.0),
            set_flag("topk_group", 4),
            set_flag("num_experts_per_tok", 2, name="num_experts_per_tok-1"),
            set_flag("rope_parameters.partial_rotary_factor", 1.0),
            flag("correction", tensor_zeros=r"e_score_correction_bias"),
            flag("shared_experts", tensor_zeros=r"shared_experts\.down_proj"),
            flag("q_norm", tensor_ones=r"q_norm"),
        ),
    )


def gpt_oss() -> CaseSpec:
    """Sinks, a window in every other layer, biases everywhere, limits that bite, yarn without truncation."""
    config = base(
        "GptOssForCausalLM", "gpt_oss", num_local_experts=5, num_experts_per_tok=2, head_dim=16, sliding_window=16,
        intermediate_size=33, num_hidden_layers=3, attention_bias=True, swiglu_limit=1.5,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )  # fmt: skip
    yarn = {
        "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "original_max_position_embeddings": 64, "truncate": False,
    }  # fmt: skip
    return CaseSpec(
        name="gpt_oss",
        config=new(config, {**yarn, "rope_theta": 500.0}),
        config_alt=old(config, theta=500.0, scaling=yarn),
        scales={r"sinks": 4.0, **SCALES},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("swiglu_limit", 7.0),
            set_flag("num_experts_per_tok", 3, name="num_experts_per_tok+1"),
            set_flag("sliding_window", 20),
            set_flag("layer_types", ["full_attention"] * 3),
            set_flag("rope_parameters.truncate", True),
            flag("sinks", tensor_zeros=r"sinks"),
            flag("router_bias", tensor_zeros=r"router\.bias"),
            flag("gate_up_bias", tensor_zeros=r"gate_up_proj_bias"),
            flag("down_bias", tensor_zeros=r"down_proj_bias"),
        ),
    )


def moe_cases() -> list[CaseSpec]:
    return [mixtral(), qwen2_moe(), qwen3_moe(), olmoe(), *granite_moe(), glm4_moe(), gpt_oss()]
