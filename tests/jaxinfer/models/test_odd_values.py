"""Published configs with one value exchanged for an odd one: a `ModelConfig` that can be written, or ConfigError."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest

from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.registry import model_config
from tests.jaxinfer.models.hub_configs import ALL
from tests.jaxinfer.models.respelling import respelled

ODD = (
    None, "", "x", 0, -1, 1.5, 16.0, True, [], [1], [None], [[]], {}, {"a": 1}, 10**9, 10**30, 10**400,
    float("nan"), float("inf"), 1e308, 5e-324,
)  # fmt: skip
ABSENT = (
    "head_dim", "layer_types", "sliding_window", "rope_scaling", "rope_theta", "rope_parameters", "dtype",
    "model_max_length", "n_positions", "original_max_position_embeddings", "no_rope_layers", "hidden_act",
)  # fmt: skip


def places(config: dict[str, Any], outer: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in config.items():
        yield (*outer, key)
        if isinstance(value, dict):
            yield from places(value, (*outer, key))


def with_value(config: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", ALL)
def test_an_odd_value_is_refused_or_understood(name: str) -> None:
    draw = random.Random(name)
    for config in (ALL[name], respelled(ALL[name])):
        for place in [*places(config), *((key,) for key in ABSENT if key not in config)]:
            for value in draw.sample(ODD, 2):
                try:
                    read = model_config(with_value(config, place, value))
                except ConfigError:
                    continue
                json.dumps(read.to_dict(), allow_nan=False)
                assert 0 < read.usual <= read.longest, (place, value)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("SmolLM3-3B", "num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; it must be at most 10000"),
        ("gemma-3-1b", "num_hidden_layers", 10**30, "num_hidden_layers is 10000"),
        ("Llama-3.1-8B", "vocab_size", 2**31, "vocab_size is 2147483648; it must be at most 2147483647"),
        ("Qwen3-8B", "model_max_length", 10**30, "model_max_length is 10000"),
        ("Llama-2-7b", "rms_norm_eps", 10**400, "rms_norm_eps is 1000000"),
        ("Llama-2-7b", "rope_theta", 10**400, "rope_theta is 1000000"),
        ("Llama-2-7b", "rope_theta", 0, "rope_parameters: rope_theta is 0.0; it must be positive"),
        ("Phi-3-mini-128k", "partial_rotary_factor", 1e30, "partial_rotary_factor is 1e[+]30; it must be above 0"),
        ("Qwen3-8B", "hidden_act", ["silu"], r"hidden_act is \['silu'\]"),
        ("gemma-2-2b", "hidden_activation", {}, "hidden_activation is {}"),
        ("Qwen3-8B", "eos_token_id", 10**30, "eos_token_id is 10000"),
    ],
)
def test_the_error_names_key_and_value(name: str, key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_config(ALL[name] | {key: value})


@pytest.mark.parametrize("key", ["layers", "ropes", "num_layers"])
@pytest.mark.parametrize("value", [None, "x", 1, [1], [None]])
def test_a_stored_config_that_is_malformed_is_refused(key: str, value: Any) -> None:
    stored = model_config(ALL["Llama-3.1-8B"]).to_dict()
    with pytest.raises(ConfigError):
        ModelConfig.from_dict(stored | {key: value})
