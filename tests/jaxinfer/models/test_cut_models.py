"""Pruned and factored models: how their configs are read, what is refused by name, and what each layer then keeps."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import jax.numpy as jnp
import pytest
from flax import nnx

from jaxinfer.config import ConfigError, LayerConfig, LinearConfig, MlpConfig, ModelConfig, RankConfig
from jaxinfer.models.decoder import abstract_decoder
from jaxinfer.models.parameters import facts_of
from jaxinfer.models.registry import model_config
from jaxinfer.models.shape import LayerShape, ModelShape, valid_tp
from jaxinfer.models.stored_matrix import input_axes, input_sizes, matrix_names
from tests.golden_recipe import load_case
from tests.jaxinfer.models.hub_configs import LLAMA_2_7B, NEMOTRON_SUPER_49B, PHI_3_MINI_128K

NAS, LOW_RANK = load_case("nemotron_nas"), load_case("low_rank")


def test_nemotron_super_as_published() -> None:
    config = model_config(NEMOTRON_SUPER_49B)
    assert [layer.mixer is None for layer in config.layers] == [False] * 6 + [True] * 2 + [False] * 3 + [True]
    assert [layer.mlp.intermediate_size for layer in config.layers if layer.mlp] == [
        14336, *[28672] * 5, *[14336] * 2, *[28672] * 3, 17920,
    ]  # fmt: skip
    assert {mixer.num_kv_heads for mixer in config.attentions} == {8}
    groups = config.cache_groups
    assert (groups.depth, groups.num_tables, len(groups.places())) == (9, 1, 9)
    assert config.notes == ()


def test_layers_of_unequal_heads_keep_as_many_as_the_most() -> None:
    config = model_config(dict(NAS.config))
    assert [None if layer.attention is None else layer.attention.num_kv_heads for layer in config.layers] == [
        2, 1, None, 4, None, 2,
    ]  # fmt: skip
    assert [type(layer.mixer) for layer in config.layers][4] is LinearConfig
    assert [type(layer.feed_forward) for layer in config.layers][3:] == [type(None), MlpConfig, LinearConfig]
    assert config.notes == ("layers have [1, 2, 4] KV heads; each keeps 4, some of them copies",)
    assert {group.spec.kv_heads for group in config.cache_groups.groups} == {4}
    assert sorted(config.cache_groups.places()) == [0, 1, 3, 5]
    shape = ModelShape.of(config, 2)
    assert shape.kv_heads == 4
    assert shape.layers == (
        LayerShape(4, 1, 146), LayerShape(4, 1, 78), LayerShape(0, 0, 146), LayerShape(4, 1, 0), LayerShape(0, 0, 78),
        LayerShape(4, 1, 0),
    )  # fmt: skip
    assert [layer.kv_heads for layer in ModelShape.canonical(config).layers] == [2, 1, 0, 4, 0, 2]
    assert valid_tp(config) == [1, 2, 4]


def test_any_numbers_of_kv_heads_have_a_common_multiple() -> None:
    blocks = [{"attention": {"n_heads_in_group": group}, "ffn": {"ffn_mult": 1.0}} for group in (3, 2)]
    config = model_config(
        NEMOTRON_SUPER_49B | {"num_attention_heads": 6, "head_dim": 64, "num_hidden_layers": 2, "block_configs": blocks}
    )
    assert {layer.kv_heads for layer in ModelShape.of(config, 1).layers} == {6}
    assert valid_tp(config) == [1, 2, 3, 6]
    fewer = dataclasses.replace(config.attentions[0], num_heads=4)
    unequal = dataclasses.replace(config, layers=(dataclasses.replace(config.layers[0], mixer=fewer), config.layers[1]))
    with pytest.raises(ConfigError, match="4 query heads and 2 KV heads or 6 query heads and 3 KV heads; 6, the least"):
        ModelShape.of(unequal, 1)


def changed_block(**changes: Any) -> dict[str, Any]:
    """The golden's config with changes to layer 1, named part__key."""
    config = copy.deepcopy(dict(NAS.config))
    for name, value in changes.items():
        part, key = name.split("__")
        config["block_configs"][1][part][key] = value
    return config


BAD_BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"attention__n_heads_in_group": 3}, r"block_configs\[1\]\.attention\.n_heads_in_group is 3; it must divide"),
    ({"attention__n_heads_in_group": None}, r"block_configs\[1\]\.attention\.n_heads_in_group is None"),
    ({"attention__no_op": 1}, r"block_configs\[1\]\.attention\.no_op is 1; it must be true or false"),
    ({"attention__window_length": 128}, r"block_configs\[1\]\.attention\.window_length is 128; it must be off"),
    ({"attention__mamba": {"state_dim": 4}}, r"block_configs\[1\]\.attention\.mamba is"),
    ({"ffn__moe": {"num_local_experts": 8}}, r"block_configs\[1\]\.ffn\.moe is"),
    ({"ffn__intermediate_size": 0}, r"block_configs\[1\]\.ffn\.intermediate_size is 0"),
    ({"ffn__intermediate_size": None, "ffn__ffn_mult": "big"}, r"block_configs\[1\]\.ffn\.ffn_mult is 'big'"),
    ({"ffn__hidden_act": "relu6"}, r"block_configs\[1\]\.ffn\.hidden_act is 'relu6'"),
    ({"ffn__gated": False}, r"block_configs\[1\]\.ffn\.gated is False"),
]


def test_blocks_that_mean_something_else_are_refused_by_name() -> None:
    for changes, message in BAD_BLOCKS:
        with pytest.raises(ConfigError, match=message):
            model_config(changed_block(**changes))
    for blocks in ([], [None] * 6, "all"):
        with pytest.raises(ConfigError, match="block_configs"):
            model_config(dict(NAS.config) | {"block_configs": blocks})
    everywhere = [{"attention": {"no_op": True}, "ffn": {"no_op": True}}] * 6
    with pytest.raises(ConfigError, match="no layer has attention"):
        model_config(dict(NAS.config) | {"block_configs": everywhere})


BAD_RANKS: list[tuple[Any, str]] = [
    ([512], r"truncation_ranks is \[512\]; it must be an object"),
    ({"lm_head": 512}, "truncation_ranks has 'lm_head'; supported are model.layers.N. and one of self_attn.q_proj"),
    ({"model.layers.0.self_attn.q_proj": 0}, r"truncation_ranks\['model.layers.0.self_attn.q_proj'\] is 0"),
    ({"model.layers.0.self_attn.q_proj": 8.5}, "is 8.5; it must be a positive integer"),
    ({"model.layers.32.mlp.up_proj": 8}, "truncation_ranks names layer 32; the model has 32"),
    ({"model.layers.0.mlp.fc1": 8}, "truncation_ranks has 'model.layers.0.mlp.fc1'"),
]


def test_ranks_that_cannot_be_are_refused_by_name() -> None:
    for ranks, message in BAD_RANKS:
        with pytest.raises(ConfigError, match=message):
            model_config(LLAMA_2_7B | {"truncation_ranks": ranks})
    with pytest.raises(ConfigError, match=r"truncation_ranks has 'model.*qkv_proj'"):
        model_config(PHI_3_MINI_128K | {"truncation_ranks": {"model.layers.0.self_attn.qkv_proj": 8}})
    ungated = load_case("arcee").config | {"truncation_ranks": {"model.layers.1.mlp.gate_proj": 8}}
    with pytest.raises(ConfigError, match=r"truncation_ranks, layer 1: ranks has {'gate': 8}; this layer has"):
        model_config(ungated)


def test_the_names_that_svd_tools_give_a_model() -> None:
    given = dict(LOW_RANK.config) | {"architectures": ["ASVDLlamaForCausalLM"], "auto_map": {"AutoConfig": "x.Y"}}
    assert model_config(given) == model_config(dict(LOW_RANK.config))
    assert model_config(given).architecture == "LlamaForCausalLM"
    assert model_config(dict(LOW_RANK.config) | {"truncation_ranks": {}}).layers[0].ranks == RankConfig()


@pytest.mark.parametrize("case", [NAS, LOW_RANK], ids=lambda case: case.name)
def test_they_survive_json(case: Any) -> None:
    config = model_config(dict(case.config))
    assert ModelConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize("case", [NAS, LOW_RANK], ids=lambda case: case.name)
def test_matrices_of_few_bits_are_those_that_the_parameters_name(case: Any) -> None:
    config = model_config(dict(case.config))
    _, state = abstract_decoder(config, ModelShape.canonical(config), jnp.dtype("float32"))
    told = []
    for path, leaf in nnx.to_flat_state(state):
        dotted, facts = ".".join(map(str, path)), facts_of(leaf)
        assert input_axes(dotted) == facts.inputs
        if facts.inputs is not None:
            told.append(dotted.removesuffix(".weight"))
            assert input_sizes(dotted, config) == leaf.shape[-facts.inputs :]
    assert sorted(told) == sorted(matrix_names(config))


def test_a_layer_cannot_have_ranks_of_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"ranks has {'q': 4}; this layer has the matrices \['gate', 'up', 'down'\]"):
        LayerConfig(None, MlpConfig(16), RankConfig(q=4))
