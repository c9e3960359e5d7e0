"""Golden cases of families that differ from others by few switches: EXAONE 4, Seed-OSS, OLMo 3, Arcee, Hunyuan,
Apertus."""

from __future__ import annotations

from tests.goldens_lib.spec import CaseSpec, Config, base, flag, new, old, set_flag, tie, untie

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3: Config = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def exaone4() -> CaseSpec:
    """Layers 0, 1 and 3 have a window and rotate, layer 2 sees everything and does not; norms behind only."""
    config = base(
        "Exaone4ForCausalLM", "exaone4", vocab_size=113, num_hidden_layers=4, sliding_window=18,
        sliding_window_pattern=3, tie_word_embeddings=True, head_dim=20,
    )  # fmt: skip
    kinds = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
    return CaseSpec(
        name="exaone4",
        config=old(config, theta=10000.0, scaling=LLAMA3),
        config_alt=new(
            config | {"sliding_window_pattern": "LLGL"}, {"rope_theta": 10000.0} | LLAMA3, layer_types=kinds
        ),
        scales={r"embed_tokens": 0.12},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("sliding_window", 19, name="sliding_window+1"),
            set_flag("sliding_window_pattern", 2),
            flag("all_layers_rotate", set={"sliding_window": None, "layer_types": ["full_attention"] * 4}),
            flag("query_norm", tensor_ones=r"q_norm\.weight$"),
            flag("key_norm", tensor_ones=r"k_norm\.weight$"),
            flag("attention_post_norm", tensor_ones=r"post_attention_layernorm\.weight$"),
            flag("mlp_post_norm", tensor_ones=r"post_feedforward_layernorm\.weight$"),
            set_flag("rope_theta", 500.0),
            set_flag("rope_scaling", None),
            untie(113, 64),
        ),
    )


def seed_oss() -> CaseSpec:
    """Biases on query, key, value and attention's output, and heads whose size is their own."""
    config = base(
        "SeedOssForCausalLM", "seed_oss", vocab_size=127, head_dim=24, attention_bias=True, attention_out_bias=True,
        mlp_bias=False, residual_dropout=0.1, num_hidden_layers=2,
    )  # fmt: skip
    out_biases = [f"model.layers.{i}.self_attn.o_proj.bias" for i in range(2)]
    return CaseSpec(
        name="seed_oss",
        config=old(config, theta=10000.0),
        config_alt=new(config, DEFAULT_ROPE),
        tensor_parallel=(1, 2),
        flags=(
            flag("query_bias", tensor_zeros=r"q_proj\.bias$"),
            flag("key_bias", tensor_zeros=r"k_proj\.bias$"),
            flag("value_bias", tensor_zeros=r"v_proj\.bias$"),
            flag("out_bias", set={"attention_out_bias": False}, drop=out_biases),
            set_flag("rope_theta", 500.0),
            tie(),
        ),
    )


def olmo3() -> CaseSpec:
    """Every fourth layer sees everything with a stretched rope of its own; the others have a window."""
    config = base(
        "Olmo3ForCausalLM", "olmo3", rms_norm_eps=1e-6, vocab_size=119, num_hidden_layers=5, attention_bias=False,
        sliding_window=20, num_key_value_heads=4,
    )  # fmt: skip
    yarn = {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.2,
        "beta_fast": 32.0, "beta_slow": 1.0,
    }  # fmt: skip
    ropes = {
        "full_attention": yarn | {"rope_theta": 500000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500000.0},
    }
    kinds = ["sliding_attention"] * 3 + ["full_attention", "sliding_attention"]
    return CaseSpec(
        name="olmo3",
        config=old(config, theta=500000.0, scaling=yarn),
        config_alt=config | {"dtype": "float32", "rope_parameters": ropes, "layer_types": kinds},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("sliding_window", 21, name="sliding_window+1"),
            flag("layer_types", set={"layer_types": ["sliding_attention"] * 5}),
            set_flag("rope_scaling", None),
            set_flag("rope_scaling.attention_factor", 1.0),
            flag("sliding_theta", set={"rope_parameters": {
                "full_attention": yarn | {"rope_theta": 500000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            }}),
            flag("query_norm", tensor_ones=r"q_norm\.weight$"),
            flag("key_norm", tensor_ones=r"k_norm\.weight$"),
            tie(),
        ),
    )  # fmt: skip


def arcee() -> list[CaseSpec]:
    """An MLP of two matrices, relu squared between them; with biases, too."""
    plain = base("ArceeForCausalLM", "arcee", vocab_size=109, hidden_act="relu2", attention_bias=False, mlp_bias=False)
    biased = plain | {"attention_bias": True, "mlp_bias": True, "num_hidden_layers": 2, "vocab_size": 97}
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
    return [
        CaseSpec(
            name="arcee",
            config=old(plain, theta=10000.0, scaling={k: v for k, v in rope.items() if k != "rope_theta"}),
            config_alt=new(plain, rope),
            tensor_parallel=(1, 2),
            flags=(
                set_flag("hidden_act", "silu"),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0),
                tie(),
            ),
        ),
        CaseSpec(
            name="arcee_bias",
            config=new(biased, DEFAULT_ROPE),
            flags=(
                flag("up_bias", tensor_zeros=r"up_proj\.bias$"),
                flag("down_bias", tensor_zeros=r"down_proj\.bias$"),
                flag("out_bias", tensor_zeros=r"o_proj\.bias$"),
                set_flag("hidden_act", "gelu"),
            ),
        ),
    ]


def hunyuan() -> list[CaseSpec]:
    """Queries and keys are rotated and then normed; a fixed alpha stretches theta, once and for all."""
    config = base(
        "HunYuanDenseV1ForCausalLM", "hunyuan_v1_dense", vocab_size=103, head_dim=20, attention_bias=False,
        tie_word_embeddings=True, max_position_embeddings=256, use_qk_norm=True, use_cla=False,
    )  # fmt: skip
    scaling = {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0}
    biased = config | {"attention_bias": True, "num_hidden_layers": 2, "tie_word_embeddings": False}
    return [
        CaseSpec(
            name="hunyuan",
            config=old(config, theta=10000.0, scaling=scaling | {"type": "dynamic"}),
            config_alt=new(config, scaling | {"rope_type": "dynamic", "rope_theta": 10000.0}),
            scales={r"embed_tokens": 0.12},
            tensor_parallel=(1, 2),
            flags=(
                set_flag("rope_scaling.alpha", 1.0),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0),
                flag("query_norm", tensor_ones=r"query_layernorm\.weight$"),
                flag("key_norm", tensor_ones=r"key_layernorm\.weight$"),
                untie(103, 64),
            ),
        ),
        CaseSpec(
            name="hunyuan_bias",
            config=new(biased, DEFAULT_ROPE),
            flags=(
                flag("query_bias", tensor_zeros=r"q_proj\.bias$"),
                flag("out_bias", tensor_zeros=r"o_proj\.bias$"),
                set_flag("rope_parameters.rope_theta", 500.0),
            ),
        ),
    ]


def apertus() -> CaseSpec:
    """No gate, and an activation with four numbers of its own in each layer; the layers' norms have other names."""
    config = base(
        "ApertusForCausalLM", "apertus", vocab_size=117, hidden_act="xielu", attention_bias=False, qk_norm=True,
        post_norm=False, mlp_bias=False,
    )  # fmt: skip
    return CaseSpec(
        name="apertus",
        config=old(config, theta=10000.0, scaling=LLAMA3),
        config_alt=new(config, LLAMA3 | {"rope_theta": 10000.0}),
        scales={r"up_proj": 0.1},
        tensor_parallel=(1, 2),
        flags=(
            flag("alpha_p", tensor_zeros=r"act_fn\.alpha_p$"),
            flag("alpha_n", tensor_zeros=r"act_fn\.alpha_n$"),
            flag("beta", tensor_zeros=r"act_fn\.beta$"),
            flag("query_norm", tensor_ones=r"q_norm\.weight$"),
            flag("attention_norm", tensor_ones=r"attention_layernorm\.weight$"),
            flag("mlp_norm", tensor_ones=r"feedforward_layernorm\.weight$"),
            set_flag("rope_scaling", None),
            tie(),
        ),
    )


def alias_cases() -> list[CaseSpec]:
    return [exaone4(), seed_oss(), olmo3(), *arcee(), *hunyuan(), apertus()]
