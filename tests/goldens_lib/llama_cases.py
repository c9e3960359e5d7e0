"""Golden cases of the Llama architecture: plain, every rope type, biases, head ratios; and Mistral."""

from __future__ import annotations

from tests.goldens_lib.spec import LAYER_NORMS, CaseSpec, base, flag, new, old, set_flag, tie, untie


def llama(**overrides: object) -> dict[str, object]:
    return base("LlamaForCausalLM", "llama", **overrides)


def plain() -> list[CaseSpec]:
    """Grouped-query attention, a head of its own; and the widths that tensor parallelism must pad."""
    first = llama(attention_bias=False, mlp_bias=False)
    wide = llama(num_attention_heads=8, intermediate_size=150, vocab_size=157, num_hidden_layers=2)
    return [
        CaseSpec(
            name="llama",
            config=old(first, theta=10000.0),
            config_alt=new(first, {"rope_type": "default", "rope_theta": 10000.0}),
            generation_config={"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": True, "temperature": 0.6},
            tensor_parallel=(1, 2),
            flags=(
                set_flag("rope_theta", 500.0),
                set_flag("rms_norm_eps", 0.1),
                set_flag("hidden_act", "gelu"),
                tie(),
                flag("layer_norms", tensor_ones=LAYER_NORMS),
                flag("final_norm", tensor_ones=r"^model\.norm\.weight$"),
            ),
        ),
        CaseSpec(
            name="llama_tp8",
            config=new(wide, {"rope_type": "default", "rope_theta": 10000.0}),
            prompt_lengths=(7, 32, 81),
            tensor_parallel=(1, 2, 4, 8),
            flags=(set_flag("rope_parameters.rope_theta", 500.0), tie()),
        ),
    ]


def bias_and_heads() -> list[CaseSpec]:
    """All biases with as many KV heads as query heads (not written down); 9 and 3 heads with a tied embedding."""
    biased = llama(attention_bias=True, mlp_bias=True, num_key_value_heads=..., vocab_size=101, hidden_size=56)
    smol = llama(
        hidden_size=90, num_attention_heads=9, num_key_value_heads=3, intermediate_size=133, vocab_size=137,
        tie_word_embeddings=True, eos_token_id=0, bos_token_id=0,
    )  # fmt: skip
    return [
        CaseSpec(
            name="llama_bias",
            config=old(biased, theta=5000.0),
            flags=(
                flag("query_bias", tensor_zeros=r"q_proj\.bias$"),
                flag("key_bias", tensor_zeros=r"k_proj\.bias$"),
                flag("value_bias", tensor_zeros=r"v_proj\.bias$"),
                flag("output_bias", tensor_zeros=r"o_proj\.bias$"),
                flag("gate_bias", tensor_zeros=r"gate_proj\.bias$"),
                flag("up_bias", tensor_zeros=r"up_proj\.bias$"),
                flag("down_bias", tensor_zeros=r"down_proj\.bias$"),
                set_flag("rope_theta", 500.0),
            ),
        ),
        CaseSpec(
            name="smollm",
            config=old(smol, theta=10000.0),
            config_alt=new(smol, {"rope_type": "default", "rope_theta": 10000.0}),
            prompt_lengths=(1, 48, 85),
            scales={r"embed_tokens": 0.12, r"[qk]_proj": 0.13},
            flags=(set_flag("rope_theta", 500.0), untie(137, 90)),
        ),
    ]


def llama3_rope() -> CaseSpec:
    """Wavelengths 2 pi 10000^(i/12): below 64/4 they stay, above 64/1 they are divided by 8, between they blend."""
    config = llama(
        head_dim=24, vocab_size=127, tie_word_embeddings=True, eos_token_id=[2, 5], num_attention_heads=4,
    )  # fmt: skip
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
        "rope_type": "llama3",
    }  # fmt: skip
    return CaseSpec(
        name="llama3_rope",
        config=new(config, scaling | {"rope_theta": 10000.0}),
        config_alt=old(config, theta=10000.0, scaling=scaling),
        generation_config={"eos_token_id": [2, 5, 7]},
        scales={r"embed_tokens": 0.12},
        flags=(
            set_flag("rope_parameters.rope_theta", 500.0),
            set_flag("rope_parameters.factor", 2.0),
            set_flag("rope_parameters.low_freq_factor", 2.0),
            set_flag("rope_parameters.high_freq_factor", 1.5),
            set_flag("rope_parameters.original_max_position_embeddings", 256),
            flag("rope_type", set={"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}),
            untie(127, 64),
        ),
    )


def scaled_ropes() -> list[CaseSpec]:
    """Linear under the oldest key (`type`), without rope_theta and with one KV head; dynamic inside its length."""
    linear = llama(num_key_value_heads=1, vocab_size=113, hidden_size=72)
    dynamic = llama(vocab_size=103, hidden_size=48, num_hidden_layers=2)
    return [
        CaseSpec(
            name="llama_linear",
            config=old(linear, theta=None, scaling={"type": "linear", "factor": 4.0}),
            config_alt=new(linear, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}),
            flags=(
                set_flag("rope_scaling.factor", 1.0),
                set_flag("rope_scaling", None),
                set_flag("rope_theta", 500.0),
            ),
        ),
        CaseSpec(
            name="llama_dynamic",
            config=old(dynamic, theta=10000.0, scaling={"type": "dynamic", "factor": 4.0}),
            config_alt=new(dynamic, {"rope_type": "default", "rope_theta": 10000.0}),
            flags=(
                set_flag("rope_theta", 500.0),
                set_flag("rope_scaling", {"type": "linear", "factor": 4.0}),
            ),
        ),
    ]


def yarn_ropes() -> list[CaseSpec]:
    """The default attention factor 0.1 ln(factor) + 1, and the one that mscale and mscale_all_dim give."""
    config = llama(max_position_embeddings=256)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    mscale = {
        "rope_type": "yarn", "rope_theta": 1000.0, "factor": 8.0, "original_max_position_embeddings": 48,
        "beta_fast": 4.0, "beta_slow": 0.5, "mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False,
    }  # fmt: skip
    return [
        CaseSpec(
            name="llama_yarn",
            config=old(config, theta=10000.0, scaling=scaling),
            config_alt=new(config, scaling | {"rope_theta": 10000.0}),
            flags=(
                set_flag("rope_theta", 500.0),
                set_flag("rope_scaling.factor", 2.0),
                set_flag("rope_scaling.original_max_position_embeddings", 256),
                set_flag("rope_scaling.attention_factor", 1.0),
                set_flag("rope_scaling", None),
            ),
        ),
        CaseSpec(
            name="llama_yarn_mscale",
            config=new(llama(max_position_embeddings=384, head_dim=32, vocab_size=109), mscale),
            flags=(
                set_flag("rope_parameters.beta_fast", 32.0),
                set_flag("rope_parameters.beta_slow", 2.0),
                set_flag("rope_parameters.mscale", 2.0),
                set_flag("rope_parameters.mscale_all_dim", 1.0),
                set_flag("rope_parameters.truncate", True),
                set_flag("rope_parameters.factor", 2.0),
            ),
        ),
    ]


def mistral() -> CaseSpec:
    """A window of 24 tokens, the query's own included; head_dim is not hidden_size / heads."""
    config = base(
        "MistralForCausalLM", "mistral", hidden_size=60, head_dim=24, vocab_size=101, sliding_window=24,
        rms_norm_eps=1e-6,
    )  # fmt: skip
    return CaseSpec(
        name="mistral",
        config=new(config, {"rope_type": "default", "rope_theta": 10000.0}),
        config_alt=old(config, theta=10000.0),
        flags=(
            set_flag("sliding_window", None),
            set_flag("sliding_window", 25, name="sliding_window+1"),
            set_flag("sliding_window", 23, name="sliding_window-1"),
            set_flag("rope_parameters.rope_theta", 500.0),
        ),
    )


def llama_cases() -> list[CaseSpec]:
    return [*plain(), *bias_and_heads(), llama3_rope(), *scaled_ropes(), *yarn_ropes(), mistral()]
