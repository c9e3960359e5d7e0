"""Models that transformers has no class for, made of its Llama's parts: what their goldens are computed by.

Needs torch and transformers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import nn
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP


class NasConfig(transformers.LlamaConfig):
    """Nemotron-NAS: `block_configs` has an entry for each layer."""

    model_type = "nemotron-nas"
    block_configs: list[Any] | None = None


class NasForCausalLM(transformers.LlamaForCausalLM):
    """Llama of which each layer is cut as its block says; norms go with what they belong to."""

    config_class = NasConfig

    def __init__(self, config: NasConfig) -> None:
        super().__init__(config)
        for index, (layer, block) in enumerate(zip(self.model.layers, config.block_configs or [], strict=True)):
            attention, mlp = block["attention"], block["ffn"]
            if attention.get("no_op"):
                layer.self_attn, layer.input_layernorm = _NoAttention(), nn.Identity()
            elif attention.get("replace_with_linear"):
                layer.self_attn = _LinearAttention(config.hidden_size)
            else:
                cut = copy.deepcopy(config)
                cut.num_key_value_heads = config.num_attention_heads // attention["n_heads_in_group"]
                layer.self_attn = LlamaAttention(cut, index)
            if mlp.get("no_op"):
                layer.mlp, layer.post_attention_layernorm = _NoMlp(), nn.Identity()
            elif mlp.get("replace_with_linear"):
                layer.mlp = _LinearMlp(config.hidden_size)
            else:
                cut = copy.deepcopy(config)
                cut.intermediate_size = mlp["intermediate_size"]
                layer.mlp = LlamaMLP(cut)


class _NoAttention(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _LinearAttention(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(size, size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.linear_attn(hidden_states), None


class _NoMlp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)


class _LinearMlp(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_mlp = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_mlp(x)


class LowRankConfig(transformers.LlamaConfig):
    """Llama whose linear layers in `truncation_ranks` are pairs of factors."""

    model_type = "llama"
    truncation_ranks: dict[str, int] | None = None


class LowRankForCausalLM(transformers.LlamaForCausalLM):
    config_class = LowRankConfig

    def __init__(self, config: LowRankConfig) -> None:
        super().__init__(config)
        for name, rank in (config.truncation_ranks or {}).items():
            parent, _, end = name.rpartition(".")
            linear = self.get_submodule(name)
            setattr(self.get_submodule(parent), end, _Factors(linear, rank))


class _Factors(nn.Module):
    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.BLinear = nn.Linear(linear.in_features, rank, bias=False)
        self.ALinear = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.ALinear(self.BLinear(x))


def class_for(config: dict[str, Any]) -> Any:
    """What reads a golden's folder: one of the classes above, or transformers' own by the config's name."""
    if config["model_type"] == NasConfig.model_type:
        return NasForCausalLM
    return LowRankForCausalLM if config.get("truncation_ranks") else transformers.AutoModelForCausalLM
