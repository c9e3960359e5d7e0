"""Models whose layers differ from those of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxinfer.config import ModelConfig


def change_layers(
    config: ModelConfig, *, mixer: Mapping[str, Any] | None = None, feed_forward: Mapping[str, Any] | None = None
) -> ModelConfig:
    """`config` with other values in its layers' parts, the same in all of them."""
    layers = [
        dataclasses.replace(
            layer,
            mixer=dataclasses.replace(layer.mixer, **(mixer or {})),
            feed_forward=dataclasses.replace(layer.feed_forward, **(feed_forward or {})),
        )
        for layer in config.layers
    ]
    return dataclasses.replace(config, layers=tuple(layers))
