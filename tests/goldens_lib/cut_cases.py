"""Golden cases of pruned and factored models: layers of unequal sizes or without parts, and matrices of low rank."""

from __future__ import annotations

from typing import Any

from tests.goldens_lib.spec import CaseSpec, Config, base, flag, new, old, set_flag, tie

DEFAULT_ROPE: Config = {"rope_type": "default", "rope_theta": 10000.0}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


def block(group: int | None, width: int | None, *, linear: tuple[str, ...] = ()) -> dict[str, Any]:
    """One layer. group: query heads of a KV head, width: of the MLP, elements; None: there is none."""
    attention = {"n_heads_in_group": group, "no_op": group is None and "attention" not in linear}
    mlp = {"intermediate_size": width, "no_op": width is None and "ffn" not in linear}
    return {
        "attention": attention
        | {"replace_with_linear": "attention" in linear, "sparsify": None, "window_length": None},
        "ffn": mlp | {"replace_with_linear": "ffn" in linear, "sparsify": None},
    }


def nemotron_nas() -> CaseSpec:
    """4 query heads on 2, 1 and 4 KV heads; widths 145 and 77; a layer without attention, one without an MLP, and one
    matrix in place of each."""
    config = base("DeciLMForCausalLM", "nemotron-nas", vocab_size=101, num_hidden_layers=6, attention_bias=False)
    del config["num_key_value_heads"]
    blocks = [
        block(2, 145), block(4, 77), block(None, 145), block(1, None),
        block(None, 77, linear=("attention",)), block(2, None, linear=("ffn",)),
    ]  # fmt: skip
    return CaseSpec(
        name="nemotron_nas",
        config=old(config, theta=10000.0, block_configs=blocks),
        config_alt=new(config, DEFAULT_ROPE, block_configs=blocks),
        scales={r"linear": 0.1},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("rope_theta", 500.0),
            flag("no_linear_attention", tensor_zeros=r"linear_attn\.weight$"),
            flag("no_linear_mlp", tensor_zeros=r"linear_mlp\.weight$"),
            flag("last_attention", tensor_zeros=r"layers\.5\.self_attn\.o_proj\.weight$"),
            tie(),
        ),
    )


def low_rank() -> CaseSpec:
    """Layer 0 has factors of all matrices, layer 1 of some, with biases; layer 2 of none."""
    config = base(
        "LlamaForCausalLM", "llama", vocab_size=115, attention_bias=True, mlp_bias=True, num_key_value_heads=2
    )
    every = (*PROJECTIONS, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ranks = {f"model.layers.0.{name}": 17 + 2 * i for i, name in enumerate(every)}
    ranks |= {"model.layers.1.self_attn.k_proj": 9, "model.layers.1.mlp.up_proj": 31}
    return CaseSpec(
        name="low_rank",
        config=old(config, theta=10000.0, truncation_ranks=ranks),
        config_alt=new(config, DEFAULT_ROPE, truncation_ranks=ranks),
        scales={r"[AB]Linear": 0.2},
        tensor_parallel=(1, 2),
        flags=(
            set_flag("rope_theta", 500.0),
            flag("query_factor", tensor_zeros=r"layers\.0\.self_attn\.q_proj\.BLinear\.weight$"),
            flag("key_factor", tensor_zeros=r"layers\.1\.self_attn\.k_proj\.ALinear\.weight$"),
            flag("out_factor", tensor_zeros=r"layers\.0\.self_attn\.o_proj\.BLinear\.weight$"),
            flag("down_factor", tensor_zeros=r"layers\.0\.mlp\.down_proj\.ALinear\.weight$"),
            flag("up_bias", tensor_zeros=r"mlp\.up_proj\.ALinear\.bias$"),
            tie(),
        ),
    )


def cut_cases() -> list[CaseSpec]:
    return [nemotron_nas(), low_rank()]
