"""What families say that differ from others by a few switches: which layers rotate, and how far."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.config import ConfigError, UnsupportedModelError
from jaxinfer.models.registry import model_config
from tests.jaxinfer.models import hub_configs


def changed(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return config | changes


def test_exaone4_layers_without_a_window_do_not_rotate() -> None:
    config = model_config(hub_configs.EXAONE_4_32B)
    assert [layer.mixer.rope for layer in config.layers[:8]] == [0, 0, 0, None, 0, 0, 0, None]
    plain = {"sliding_window": None, "sliding_window_pattern": None, "layer_types": ["full_attention"] * 64}
    config = model_config(changed(hub_configs.EXAONE_4_32B, **plain))
    assert {(layer.mixer.rope, layer.mixer.sliding_window) for layer in config.layers} == {(0, None)}
    counted = model_config(changed(hub_configs.EXAONE_4_32B, sliding_window_pattern=2, layer_types=None))
    assert [layer.mixer.sliding_window for layer in counted.layers[:4]] == [4096, None, 4096, None]
    with pytest.raises(ConfigError, match="sliding_window_pattern is 'LLLG'; without layer_types it must be"):
        model_config(changed(hub_configs.EXAONE_4_32B, layer_types=None))


def test_olmo3_stretches_the_layers_without_a_window_only() -> None:
    config = model_config(hub_configs.OLMO_3_7B)
    assert [config.ropes[layer.mixer.rope].kind for layer in config.layers[:4]] == ["default"] * 3 + ["yarn"]
    assert config.notes == ()
    other = model_config(changed(hub_configs.OLMO_3_7B, rope_theta=1e6))
    assert [rope.theta for rope in other.ropes] == [1e6, 1e6]
    assert "rope_theta = 1000000.0 counts for all layers; transformers 5.24 gives 500000.0" in other.notes[0]


def test_hunyuans_alpha_stretches_theta_and_the_other_keys_say_nothing() -> None:
    config = model_config(hub_configs.HUNYUAN_7B)
    assert (config.dynamic_border, config.longest, config.notes) == (None, 32768, ())
    plain = model_config(changed(hub_configs.HUNYUAN_7B, rope_scaling={"type": "dynamic", "factor": 2.0}))
    assert (plain.ropes[0].kind, plain.ropes[0].theta) == ("dynamic", 1e4)
    for scaling, word in (({"alpha": -1.0}, "alpha is -1.0"), ({"alpha": 2.0, "gamma": 3}, "gamma = 3")):
        with pytest.raises(ConfigError, match=word):
            model_config(changed(hub_configs.HUNYUAN_7B, rope_scaling={"type": "dynamic", **scaling}))
    with pytest.raises(UnsupportedModelError, match="alpha"):
        model_config(changed(hub_configs.LLAMA_2_7B, rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 2.0}))


def test_granites_layers_with_theta_0_do_not_rotate() -> None:
    config = model_config(changed(hub_configs.GRANITE_SWA, layer_rope_theta=[0, 1e4, 1e4, 5e5] * 6))
    assert [layer.mixer.rope for layer in config.layers[:5]] == [None, 0, 0, 1, None]
    assert [rope.theta for rope in config.ropes] == [1e4, 5e5]
