"""Matrices of low rank that are stored as their two factors: what `truncation_ranks` of a config.json says.

ASVD4LLM and the SVD tools that follow it write {"model.layers.3.self_attn.q_proj": 512, ...} there, and in place of
each named linear layer `BLinear` (rank, in) and `ALinear` (out, rank), whose product it is. Standard library only.
"""

from __future__ import annotations

import dataclasses
import re

from jaxinfer.config import ConfigError, ModelConfig, RankConfig, UnsupportedModelError
from jaxinfer.models.config_reader import ConfigReader, check_count

KEY = "truncation_ranks"
_NAMES = {
    "self_attn.q_proj": "q",
    "self_attn.k_proj": "k",
    "self_attn.v_proj": "v",
    "self_attn.o_proj": "out",
    "mlp.gate_proj": "gate",
    "mlp.up_proj": "up",
    "mlp.down_proj": "down",
}
_LINEAR = re.compile(r"model\.layers\.(\d{1,9})\.(\w+\.\w+)")


def with_ranks(model: ModelConfig, config: ConfigReader) -> ModelConfig:
    """The model with the ranks that its file gives, if any.

    Raises UnsupportedModelError for a linear layer outside of attention and MLPs, ConfigError for a rank that is no
    positive integer or belongs to a matrix that the layer does not have; both name it.
    """
    given = config.raw(KEY)
    if not given:
        return model
    if not isinstance(given, dict):
        raise ConfigError(f"{KEY} is {given!r:.80}; it must be an object of ranks by names of linear layers")
    ranks: dict[int, dict[str, int]] = {}
    for name, rank in given.items():
        found = _LINEAR.fullmatch(name)
        if found is None or found[2] not in _NAMES:
            raise UnsupportedModelError(
                f"{KEY} has {name!r:.80}; supported are model.layers.N. and one of {', '.join(_NAMES)}"
            )
        check_count(f"{KEY}[{name!r}]", rank)
        ranks.setdefault(int(found[1]), {})[_NAMES[found[2]]] = rank
    if beyond := sorted(layer for layer in ranks if layer >= model.num_layers):
        raise ConfigError(f"{KEY} names layer {beyond[0]}; the model has {model.num_layers}")
    layers = list(model.layers)
    for layer, of_layer in ranks.items():
        try:
            layers[layer] = dataclasses.replace(layers[layer], ranks=RankConfig(**of_layer))
        except ConfigError as error:
            raise ConfigError(f"{KEY}, layer {layer}: {error}") from error
    return dataclasses.replace(model, layers=tuple(layers))
