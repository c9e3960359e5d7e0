"""Nemotron-NAS (DeciLM): Llama of which each layer was cut by itself.

`block_configs` says for each layer how many query heads share a KV head, how wide the MLP is, and what is absent or has
become one matrix; without it no layer is cut. What its class does is read off vLLM 0.32, as transformers has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import (
    AttentionConfig,
    ConfigError,
    LayerConfig,
    LinearConfig,
    MlpConfig,
    ModelConfig,
    UnsupportedModelError,
)
from jaxinfer.models.config_reader import ConfigReader, check_count, is_number
from jaxinfer.models.families.build import build
from jaxinfer.models.families.common import ACTIVATIONS, full_layers, read_common
from jaxinfer.models.rope_parameters import RopeRules, read_rope

_WHOLE = object()  # stands for the block of a layer that is not cut
_WIDTH_MULTIPLE = 256  # widths that `ffn_mult` gives are rounded up to it

# What the parts of a block may have. The others must be off: windows and sinks, experts, other kinds of layers.
_ATTENTION = ("no_op", "replace_with_linear", "n_heads_in_group")
_MLP = ("no_op", "replace_with_linear", "ffn_mult", "intermediate_size", "hidden_act", "gated")


def decilm(config: ConfigReader) -> ModelConfig:
    common = read_common(config)
    attention_bias = config.switch("attention_bias", False)
    mlp_bias = config.switch("mlp_bias", False)
    blocks = config.raw("block_configs", [_WHOLE] * common.num_layers)
    if not isinstance(blocks, list) or len(blocks) != common.num_layers:
        raise ConfigError(
            f"block_configs is {blocks!r:.80}; it must be a list of one object for each of {common.num_layers} layers"
        )
    windows = full_layers(config, common.num_layers)
    rope = read_rope(config, common.head_dim, common.max_position_embeddings, RopeRules())
    whole = build(
        config,
        common,
        windows=windows,
        ropes=[rope] * common.num_layers,
        qkv_bias=attention_bias,
        attention_out_bias=attention_bias,
        mlp_bias=mlp_bias,
    )
    cut = tuple(
        layer if blocks[i] is _WHOLE else _cut(layer, _Block(blocks[i], i), common.hidden_size)
        for i, layer in enumerate(whole.layers)
    )
    model = dataclasses.replace(whole, layers=cut)
    if len(found := sorted({mixer.num_kv_heads for mixer in model.attentions})) > 1:
        config.notes.append(f"layers have {found} KV heads; each keeps {model.kept_kv_heads}, some of them copies")
    return dataclasses.replace(model, notes=tuple(config.notes))


class _Block:
    """One entry of `block_configs`."""

    def __init__(self, data: Any, layer: int) -> None:
        self.where = f"block_configs[{layer}]"
        if not isinstance(data, Mapping) or not all(
            isinstance(data.get(part), Mapping) for part in ("attention", "ffn")
        ):
            raise ConfigError(f"{self.where} is {data!r:.120}; it must be an object with the objects attention and ffn")
        self._data = data
        for part, known in (("attention", _ATTENTION), ("ffn", _MLP)):
            for key, value in data[part].items():
                if key not in known and value:
                    raise UnsupportedModelError(
                        f"{self.where}.{part}.{key} is {value!r:.80}; it must be off. Known keys: {list(known)}"
                    )

    def value(self, part: str, key: str) -> Any:
        return self._data[part].get(key)

    def switch(self, part: str, key: str, default: bool = False) -> bool:
        value = self.value(part, key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.where}.{part}.{key} is {value!r:.80}; it must be true or false")
        return default if value is None else value


def _cut(layer: LayerConfig, block: _Block, hidden_size: int) -> LayerConfig:
    assert isinstance(layer.mixer, AttentionConfig)
    assert isinstance(layer.feed_forward, MlpConfig)
    mixer: AttentionConfig | LinearConfig | None = layer.mixer
    mlp: MlpConfig | LinearConfig | None = layer.feed_forward
    if block.switch("attention", "no_op"):
        mixer = None
    elif block.switch("attention", "replace_with_linear"):
        mixer = LinearConfig(bias=layer.mixer.qkv_bias)
    else:
        group, key = block.value("attention", "n_heads_in_group"), f"{block.where}.attention.n_heads_in_group"
        check_count(key, group)
        if layer.mixer.num_heads % group:
            raise ConfigError(f"{key} is {group}; it must divide num_attention_heads, {layer.mixer.num_heads}")
        mixer = dataclasses.replace(layer.mixer, num_kv_heads=layer.mixer.num_heads // group)
    if block.switch("ffn", "no_op"):
        mlp = None
    elif block.switch("ffn", "replace_with_linear"):
        mlp = LinearConfig()
    else:
        name = block.value("ffn", "hidden_act")
        if name is not None and name not in ACTIVATIONS:
            raise UnsupportedModelError(
                f"{block.where}.ffn.hidden_act is {name!r:.80}; known are {sorted(ACTIVATIONS)}"
            )
        if not block.switch("ffn", "gated", default=True):
            raise UnsupportedModelError(f"{block.where}.ffn.gated is False; MLPs of this family have a gate")
        mlp = dataclasses.replace(
            layer.feed_forward,
            intermediate_size=_width(block, hidden_size),
            activation=layer.feed_forward.activation if name is None else ACTIVATIONS[name],
        )
    return LayerConfig(mixer, mlp)


def _width(block: _Block, hidden_size: int) -> int:
    """`intermediate_size`, or else 2/3 of `ffn_mult` times the model's width, rounded up."""
    given, times = block.value("ffn", "intermediate_size"), block.value("ffn", "ffn_mult")
    if given is not None:
        check_count(f"{block.where}.ffn.intermediate_size", given)
        return int(given)
    if not is_number(times) or times <= 0:
        raise ConfigError(f"{block.where}.ffn.ffn_mult is {times!r:.80}; it must be a positive number")
    width = int(2 * times * hidden_size / 3)
    width += -width % _WIDTH_MULTIPLE
    check_count(f"{block.where}.ffn: the width that ffn_mult = {times} gives", width)
    return width
