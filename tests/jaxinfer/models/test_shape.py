"""Which tensor-parallel degrees are valid, and the sizes they give."""

from __future__ import annotations

import pytest

from jaxinfer.config import ConfigError
from jaxinfer.models.registry import model_config
from jaxinfer.models.shape import LayerShape, ModelShape, valid_ep, valid_tp
from tests.golden_recipe import build_config
from tests.jaxinfer.models.hub_configs import ALL
from tests.jaxinfer.resized import eight_experts_eight_heads


@pytest.mark.parametrize(
    ("heads", "kv_heads", "expected"),
    [
        (32, 8, [1, 2, 4, 8, 16, 32]),
        (9, 3, [1, 3, 9]),
        (28, 4, [1, 2, 4, 28]),  # 7 and 14 divide the query heads, but neither divides nor is a multiple of 4
        (12, 1, [1, 2, 3, 4, 6, 12]),
        (128, 128, [1, 2, 4, 8, 16, 32, 64]),
        (4, 4, [1, 2, 4]),
    ],
)
def test_valid_degrees(heads: int, kv_heads: int, expected: list[int]) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": 64}
    config = model_config(ALL["Llama-2-7b"] | sizes)
    assert valid_tp(config) == expected
    for tp in range(70):
        if tp in expected:
            shape = ModelShape.of(config, tp)
            assert {layer.heads for layer in shape.layers} == {heads}
            assert shape.kv_heads % tp == 0
            continue
        with pytest.raises(ConfigError) as error:
            ModelShape.of(config, tp)
        assert str(expected) in str(error.value)


def test_limit() -> None:
    config = model_config(ALL["Llama-3.1-8B"])
    assert valid_tp(config, limit=4) == [1, 2, 4]


def test_sizes_are_padded_and_heads_repeated() -> None:
    config = model_config(ALL["Llama-3.1-8B"] | {"vocab_size": 128257, "intermediate_size": 14337})
    assert ModelShape.of(config, 1) == ModelShape(1, 128257, (LayerShape(8, 4, mlp=14337),) * 32)
    assert ModelShape.of(config, 8) == ModelShape(8, 128264, (LayerShape(8, 4, mlp=14344),) * 32)
    assert ModelShape.of(config, 16) == ModelShape(16, 128272, (LayerShape(16, 2, mlp=14352),) * 32)
    assert ModelShape.of(config, 32) == ModelShape(32, 128288, (LayerShape(32, 1, mlp=14368),) * 32)


def test_experts_are_dealt_in_equal_parts() -> None:
    config = model_config(build_config(eight_experts_eight_heads()))  # widths of 145, 27 and 54
    assert valid_ep(config) == [1, 2, 4, 8]
    shape = ModelShape.of(config, 8, 4)  # two devices share an expert, eight the rest
    assert [(layer.kv_heads, layer.mlp, layer.shared) for layer in shape.layers] == [(8, 152, 0), (8, 28, 56)]
    assert ModelShape.of(config, 8, 8).layers[1].mlp == 27
    with pytest.raises(
        ConfigError, match=r"expert_parallel_size is 3; with 8 experts it must be one of \[1, 2, 4, 8\]"
    ):
        ModelShape.of(config, 8, 3)
    asked = "tensor_parallel_size x expert_parallel_size is 2 x 8 = 16"
    with pytest.raises(ConfigError, match=rf"{asked}; with 8 query heads .* must be one of \[1, 2, 4, 8\]"):
        ModelShape.of(config, 16, 8)


def test_a_model_without_experts_has_none_to_deal() -> None:
    config = model_config(ALL["Llama-3.1-8B"])
    assert valid_ep(config) == [1]
    with pytest.raises(ConfigError, match="expert_parallel_size is 2; the model has no experts, so that it must be 1"):
        ModelShape.of(config, 2, 2)


@pytest.mark.parametrize("tp", [True, 1.0, "2", -1])
def test_only_positive_integers_are_degrees(tp: object) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        ModelShape.of(model_config(ALL["Llama-3.1-8B"]), tp)  # type: ignore[arg-type]
