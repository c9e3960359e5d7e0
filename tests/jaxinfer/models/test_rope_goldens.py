"""Rope settings against transformers' own reading and arithmetic (goldens_rope.json, scripts/make_rope_goldens.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxinfer.config import ConfigError, RopeConfig
from jaxinfer.models.layers.rope import LONG, SHORT, inverse_frequencies
from jaxinfer.models.registry import model_config

GOLDENS = json.loads((Path(__file__).resolve().parents[2] / "goldens_rope.json").read_text(encoding="utf-8"))
CASES = GOLDENS["cases"]


def same(rope: RopeConfig, wanted: dict[str, Any], rope_variant: int = SHORT) -> None:
    # float32 powers differ by a unit between maths libraries, and the blends subtract numbers of order 1
    np.testing.assert_allclose(inverse_frequencies(rope, rope_variant), wanted["frequencies"], rtol=2e-6)
    assert rope.attention_factor == pytest.approx(wanted["attention_factor"], rel=1e-12)


@pytest.mark.parametrize("name", [name for name in CASES if "error" not in CASES[name]])
def test_frequencies_are_those_of_transformers(name: str) -> None:
    case = CASES[name]
    config = model_config(case["config"])
    if "all" in case:
        (rope,) = config.ropes
        same(rope, case["all"])
    else:
        by_window = {layer.mixer.sliding_window is not None: config.ropes[layer.mixer.rope] for layer in config.layers}
        same(by_window[False], case["full_attention"])
        same(by_window[True], case["sliding_attention"])
    if "long" in case:
        same(config.ropes[0], case["long"], LONG)


def test_what_transformers_refuses() -> None:
    """yarn without a factor is refused here too; `su`, of Phi-3's first files, is longrope, as in transformers 4."""
    assert {name for name in CASES if "error" in CASES[name]} == {"yarn without factor", "su"}
    with pytest.raises(ConfigError, match="factor"):
        model_config(CASES["yarn without factor"]["config"])
    assert model_config(CASES["su"]["config"]).ropes == model_config(CASES["longrope"]["config"]).ropes


def test_the_cases_tell_settings_apart() -> None:
    """Cases that differ in one setting differ in their numbers, else they prove nothing about it."""

    def numbers(name: str, part: str = "all") -> tuple[Any, ...]:
        return (*CASES[name][part]["frequencies"], CASES[name][part]["attention_factor"])

    yarns = [name for name in CASES if name.startswith("yarn") and "error" not in CASES[name]]
    alike = {"yarn with null factor", "yarn with zero betas", "yarn with one mscale"}  # they mean what "yarn" does
    assert len({numbers(name) for name in yarns}) == len(yarns) - len(alike)
    assert numbers("yarn untruncated") != numbers("yarn")
    assert numbers("gemma3, yarn untruncated", "full_attention") == numbers("gemma3, yarn", "full_attention")
    assert numbers("longrope", "long") != numbers("longrope")
