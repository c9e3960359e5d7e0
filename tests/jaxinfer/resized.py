"""Golden models in other sizes, which have no answers of transformers: several devices are compared with one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tests.golden_recipe import GoldenCase, load_case


def resized(case: GoldenCase, changes: Mapping[str, Any], sizes: Mapping[int, int]) -> GoldenCase:
    """The case's first two layers with other values in its config. sizes: what axes of its tensors become, by what they
    are."""
    specs = {
        name: dataclasses.replace(spec, shape=tuple(sizes.get(size, size) for size in spec.shape))
        for name, spec in case.specs.items()
        if not any(name.startswith(f"model.layers.{layer}.") for layer in range(2, 9))
    }
    return dataclasses.replace(case, config={**case.config, "num_hidden_layers": 2, **changes}, specs=specs)


def eight_experts_eight_heads() -> GoldenCase:
    """A dense layer, then layers of 8 experts of width 27 and shared ones of 54; 8 query heads, 2 KV heads."""
    changes = {"num_attention_heads": 8, "moe_intermediate_size": 27}
    return resized(load_case("glm4_moe"), changes, {80: 160, 24: 27, 48: 54})


def eight_experts_with_biases(width: int = 33) -> GoldenCase:
    """8 experts with biases and limits, a router with a bias, sinks; 4 query heads, 2 KV heads."""
    layers = ["sliding_attention", "full_attention"]
    changes = {"num_local_experts": 8, "layer_types": layers, "intermediate_size": width}
    return resized(load_case("gpt_oss"), changes, {5: 8, 33: width, 66: 2 * width})
