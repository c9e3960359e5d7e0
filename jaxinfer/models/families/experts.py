"""What families with experts read alike: how many there are, how wide they are, and which layers have them."""

from __future__ import annotations

from collections.abc import Mapping

from jaxinfer.config import ConfigError, FeedForward, MlpConfig, MoeConfig
from jaxinfer.models.config_reader import ConfigReader
from jaxinfer.models.families.common import Common


def count_of(config: ConfigReader, names: tuple[str, ...], default: int) -> int:
    """A positive integer that has several names, of which transformers writes the first. Raises ConfigError where two
    of them differ."""
    given: Mapping[str, int] = {name: config.count(name, default) for name in names if config.raw(name) is not None}
    if len(set(given.values())) > 1:
        raise ConfigError(f"{', '.join(f'{name} is {value}' for name, value in given.items())}; they must be the same")
    return next(iter(given.values()), None) or config.count(names[0], default)


def sparse_layers(config: ConfigReader, common: Common, moe: MoeConfig, step: int = 1) -> list[FeedForward]:
    """Qwen's rule: a layer has experts unless `mlp_only_layers` names it, or it is none of every `step`.

    Raises ConfigError for a list that names what is no layer.
    """
    step = config.count("decoder_sparse_step", step)
    dense = config.raw("mlp_only_layers", [])
    layers = range(common.num_layers)
    if not isinstance(dense, list) or not all(type(layer) is int and layer in layers for layer in dense):
        raise ConfigError(f"mlp_only_layers is {dense!r:.200}; it must list layers, 0 to {common.num_layers - 1}")
    mlp = MlpConfig(common.intermediate_size, activation=common.activation)
    return [moe if layer not in dense and (layer + 1) % step == 0 else mlp for layer in layers]
