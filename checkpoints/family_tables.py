"""Which Hugging Face tensor goes where in the decoder's parameters: one table for each architecture.

`layouts` has the transforms that a line names, and the layouts of parameters.
"""

from __future__ import annotations

from collections.abc import Mapping

from checkpoints.layouts import Rule

_LAYER = "model.layers.{i}."
_OURS = "layers.{i}."

_ENDS = (
    Rule("model.embed_tokens.weight", "embed.weight"),
    Rule("model.norm.weight", "final_norm.weight"),
    Rule("lm_head.weight", "lm_head.weight"),
)
# A rule whose parameter the model does not have (a bias, an untied head) is left out; then its tensor must not exist.
_ATTENTION = tuple(
    Rule(f"{_LAYER}self_attn.{name}_proj.{kind}", f"{_OURS}attention.{target}.{kind}", transform)
    for name, target, transform in (("q", "qkv", "query"), ("k", "qkv", "key"), ("v", "qkv", "value"))
    for kind in ("weight", "bias")
)
_FUSED_ATTENTION = (
    Rule(f"{_LAYER}self_attn.qkv_proj.weight", f"{_OURS}attention.qkv.weight", "query_key_value"),
)  # fmt: skip
_ATTENTION_OUT = (
    Rule(f"{_LAYER}self_attn.o_proj.weight", f"{_OURS}attention.out.weight", "attention_out"),
    Rule(f"{_LAYER}self_attn.o_proj.bias", f"{_OURS}attention.out.bias"),
)
_HEAD_NORMS = tuple(
    Rule(f"{_LAYER}self_attn.{name}.weight", f"{_OURS}attention.{name}.weight") for name in ("q_norm", "k_norm")
)
_WHOLE_NORMS = (
    Rule(f"{_LAYER}self_attn.q_norm.weight", f"{_OURS}attention.q_norm.weight", "query_norm"),
    Rule(f"{_LAYER}self_attn.k_norm.weight", f"{_OURS}attention.k_norm.weight", "key_norm"),
)
_MLP = tuple(
    Rule(f"{_LAYER}mlp.{name}_proj.{kind}", f"{_OURS}mlp.{target}.{kind}", transform)
    for name, target, transform in (("gate", "gate_up", "gate"), ("up", "gate_up", "up"), ("down", "down", "copy"))
    for kind in ("weight", "bias")
)
_UNGATED_MLP = tuple(
    Rule(f"{_LAYER}mlp.{name}_proj.{kind}", f"{_OURS}mlp.{name}.{kind}")
    for name in ("up", "down")
    for kind in ("weight", "bias")
)
_XIELU = tuple(
    Rule(f"{_LAYER}mlp.act_fn.{name}", f"{_OURS}mlp.xielu.{name}", transform)
    for name, transform in (("alpha_p", "copy"), ("alpha_n", "copy"), ("beta", "scalar"), ("eps", "scalar"))
)
_FUSED_MLP = (
    Rule(f"{_LAYER}mlp.gate_up_proj.weight", f"{_OURS}mlp.gate_up.weight", "gate_up"),
    Rule(f"{_LAYER}mlp.down_proj.weight", f"{_OURS}mlp.down.weight"),
)


def _norms(**names: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{_LAYER}{theirs}.weight", f"{_OURS}{ours}.weight") for ours, theirs in names.items())


_PRE_NORMS = _norms(attention_norm="input_layernorm", mlp_norm="post_attention_layernorm")
_POST_NORMS = _norms(attention_post_norm="post_attention_layernorm", mlp_post_norm="post_feedforward_layernorm")
_FOUR_NORMS = _norms(
    attention_norm="input_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_norm="pre_feedforward_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
)

_LATE_HEAD_NORMS = tuple(
    Rule(f"{_LAYER}self_attn.{theirs}_layernorm.weight", f"{_OURS}attention.{ours}_norm.weight")
    for ours, theirs in (("q", "query"), ("k", "key"))
)
_NAMED_NORMS = _norms(attention_norm="attention_layernorm", mlp_norm="feedforward_layernorm")

# Where a layer has matrices as two factors: the names that SVD tools after ASVD4LLM give them, ALinear (out, rank) and
# BLinear (rank, in); and matrices that stand alone because one beside them is factored.
LOW_RANK = tuple(
    rule
    for ours, theirs, outputs, inputs in (
        ("attention.q", "self_attn.q_proj", "heads", "copy"),
        ("attention.k", "self_attn.k_proj", "heads", "copy"),
        ("attention.v", "self_attn.v_proj", "heads", "copy"),
        ("attention.out", "self_attn.o_proj", "copy", "attention_out"),
        ("mlp.gate", "mlp.gate_proj", "copy", "copy"),
        ("mlp.up", "mlp.up_proj", "copy", "copy"),
        ("mlp.down", "mlp.down_proj", "copy", "copy"),
    )
    for rule in (
        Rule(f"{_LAYER}{theirs}.weight", f"{_OURS}{ours}.weight", outputs if inputs == "copy" else inputs),
        Rule(f"{_LAYER}{theirs}.bias", f"{_OURS}{ours}.bias", outputs),
        Rule(f"{_LAYER}{theirs}.BLinear.weight", f"{_OURS}{ours}.inner.weight", inputs),
        Rule(f"{_LAYER}{theirs}.ALinear.weight", f"{_OURS}{ours}.outer.weight", outputs),
        Rule(f"{_LAYER}{theirs}.ALinear.bias", f"{_OURS}{ours}.outer.bias", outputs),
    )
)
# One matrix in place of a layer's attention or MLP.
_LINEAR = tuple(
    Rule(f"{_LAYER}{theirs}.{kind}", f"{_OURS}{ours}.linear.{kind}")
    for ours, theirs in (("attention", "self_attn.linear_attn"), ("mlp", "mlp.linear_mlp"))
    for kind in ("weight", "bias")
)

_SEPARATE = (*_ENDS, *_ATTENTION, *_ATTENTION_OUT, *_MLP)
_UNGATED = (*_ENDS, *_ATTENTION, *_ATTENTION_OUT, *_UNGATED_MLP)
_WITH_EXPERTS = (*_ENDS, *_ATTENTION, *_ATTENTION_OUT)


def _router(theirs: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{_LAYER}{theirs}.{kind}", f"{_OURS}moe.router.{kind}") for kind in ("weight", "bias"))


def _experts(theirs: str, gate: str, up: str, down: str) -> tuple[Rule, ...]:
    """Each expert's three matrices in tensors of their own."""
    return (
        Rule(f"{_LAYER}{theirs}.{{e}}.{gate}.weight", f"{_OURS}moe.gate_up.weight", "gate"),
        Rule(f"{_LAYER}{theirs}.{{e}}.{up}.weight", f"{_OURS}moe.gate_up.weight", "up"),
        Rule(f"{_LAYER}{theirs}.{{e}}.{down}.weight", f"{_OURS}moe.down.weight"),
    )


def _shared(theirs: str) -> tuple[Rule, ...]:
    names = (("gate", "gate_up", "gate"), ("up", "gate_up", "up"), ("down", "down", "copy"))
    return tuple(
        Rule(f"{_LAYER}{theirs}.{name}_proj.weight", f"{_OURS}moe.shared.{target}.weight", transform)
        for name, target, transform in names
    )


# Layers without experts, in models that have some with them, have the usual MLP: its lines find no parameter elsewhere.
_QWEN_MOE = (
    *_WITH_EXPERTS,
    *_MLP,
    *_router("mlp.gate"),
    *_experts("mlp.experts", "gate_proj", "up_proj", "down_proj"),
)
_GRANITE_MOE = (
    *_WITH_EXPERTS,
    Rule(f"{_LAYER}block_sparse_moe.router.layer.weight", f"{_OURS}moe.router.weight"),
    Rule(f"{_LAYER}block_sparse_moe.input_linear.weight", f"{_OURS}moe.gate_up.weight", "stacked_gate_up"),
    Rule(f"{_LAYER}block_sparse_moe.output_linear.weight", f"{_OURS}moe.down.weight"),
    Rule(f"{_LAYER}shared_mlp.input_linear.weight", f"{_OURS}moe.shared.gate_up.weight", "gate_up"),
    Rule(f"{_LAYER}shared_mlp.output_linear.weight", f"{_OURS}moe.shared.down.weight"),
)
_GPT_OSS = (
    *_WITH_EXPERTS,
    Rule(f"{_LAYER}self_attn.sinks", f"{_OURS}attention.sinks", "sinks"),
    *_router("mlp.router"),
    Rule(f"{_LAYER}mlp.experts.gate_up_proj", f"{_OURS}moe.gate_up.weight", "experts_gate_up"),
    Rule(f"{_LAYER}mlp.experts.gate_up_proj_bias", f"{_OURS}moe.gate_up.bias", "experts_gate_up"),
    Rule(f"{_LAYER}mlp.experts.down_proj", f"{_OURS}moe.down.weight", "experts_down"),
    Rule(f"{_LAYER}mlp.experts.down_proj_bias", f"{_OURS}moe.down.bias"),
)

# Architecture (`ModelConfig.architecture`) -> its table.
FAMILY_RULES: Mapping[str, tuple[Rule, ...]] = {
    "LlamaForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "MistralForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Ministral3ForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Qwen2ForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Qwen3ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_PRE_NORMS),
    "Gemma2ForCausalLM": (*_SEPARATE, *_FOUR_NORMS),
    "Gemma3ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_FOUR_NORMS),
    "Phi3ForCausalLM": (*_ENDS, *_FUSED_ATTENTION, *_ATTENTION_OUT, *_FUSED_MLP, *_PRE_NORMS),
    "Olmo2ForCausalLM": (*_SEPARATE, *_WHOLE_NORMS, *_POST_NORMS),
    "GraniteForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "SmolLM3ForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "MixtralForCausalLM": (
        *_WITH_EXPERTS,
        *_router("block_sparse_moe.gate"),
        *_experts("block_sparse_moe.experts", "w1", "w3", "w2"),
        *_PRE_NORMS,
    ),
    "Qwen2MoeForCausalLM": (
        *_QWEN_MOE,
        *_shared("mlp.shared_expert"),
        Rule(f"{_LAYER}mlp.shared_expert_gate.weight", f"{_OURS}moe.shared_gate.weight"),
        *_PRE_NORMS,
    ),
    "Qwen3MoeForCausalLM": (*_QWEN_MOE, *_HEAD_NORMS, *_PRE_NORMS),
    "OlmoeForCausalLM": (*_QWEN_MOE, *_WHOLE_NORMS, *_PRE_NORMS),
    "GraniteMoeForCausalLM": (*_GRANITE_MOE, *_PRE_NORMS),
    "GraniteMoeSharedForCausalLM": (*_GRANITE_MOE, *_PRE_NORMS),
    "Glm4MoeForCausalLM": (
        *_QWEN_MOE,
        Rule(f"{_LAYER}mlp.gate.e_score_correction_bias", f"{_OURS}moe.correction"),
        *_shared("mlp.shared_experts"),
        *_HEAD_NORMS,
        *_PRE_NORMS,
    ),
    "GptOssForCausalLM": (*_GPT_OSS, *_PRE_NORMS),
    "Exaone4ForCausalLM": (*_SEPARATE, *_HEAD_NORMS, *_POST_NORMS),
    "SeedOssForCausalLM": (*_SEPARATE, *_PRE_NORMS),
    "Olmo3ForCausalLM": (*_SEPARATE, *_WHOLE_NORMS, *_POST_NORMS),
    "ArceeForCausalLM": (*_UNGATED, *_PRE_NORMS),
    "HunYuanDenseV1ForCausalLM": (*_SEPARATE, *_LATE_HEAD_NORMS, *_PRE_NORMS),
    "ApertusForCausalLM": (*_UNGATED, *_XIELU, *_HEAD_NORMS, *_NAMED_NORMS),
    "DeciLMForCausalLM": (*_SEPARATE, *_LINEAR, *_PRE_NORMS),
    # Of several modalities: names as the language model alone would have them (`checkpoints.language_model`).
    "Gemma3ForConditionalGeneration": (*_SEPARATE, *_HEAD_NORMS, *_FOUR_NORMS),
    "Mistral3ForConditionalGeneration": (*_SEPARATE, *_PRE_NORMS),
    "Qwen2_5_VLForConditionalGeneration": (*_SEPARATE, *_PRE_NORMS),
    "Qwen3VLForConditionalGeneration": (*_SEPARATE, *_HEAD_NORMS, *_PRE_NORMS),
}
