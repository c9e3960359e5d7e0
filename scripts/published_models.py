"""Configurations that scripts know by name, as folders with a config.json alone: no weights are needed to compile.

The shapes of `model_shapes.py`, and published models with the config.json that tests have of them. gpt-oss is as it was
published, its experts in MXFP4; `NAME-bf16` is the same in bfloat16, as others publish it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model_shapes import SHAPES

from jaxinfer.config import ConfigError
from tests.jaxinfer.models import hub_configs

MIXTURES = ("Mixtral-8x7B", "Qwen3-30B-A3B", "GLM-4.5-Air", "gpt-oss-20b", "gpt-oss-120b")  # planned in docs/models.md
WIDE = "-bf16"
_MXFP4 = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
STORED: dict[str, dict[str, Any]] = {"gpt-oss-20b": _MXFP4, "gpt-oss-120b": _MXFP4}
NAMES = (*SHAPES, *hub_configs.ALL, *(name + WIDE for name in STORED))


def write_config(name: str, folder: Path, layers: int | None = None) -> Path:
    """Writes the config.json of one of `NAMES` into `folder`, and returns it.

    layers: only so many of the model's. Raises ConfigError for another name.
    """
    if name not in NAMES:
        raise ConfigError(f"model is {name!r}; it must be a checkpoint folder or one of {', '.join(NAMES)}")
    raw = dict(SHAPES[name] if name in SHAPES else hub_configs.ALL[name.removesuffix(WIDE)])
    if name in STORED:
        raw["quantization_config"] = STORED[name]
    if layers is not None:
        raw["num_hidden_layers"] = layers
        if "layer_types" in raw:
            raw["layer_types"] = raw["layer_types"][:layers]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return folder
