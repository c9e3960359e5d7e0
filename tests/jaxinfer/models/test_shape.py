"""Which tensor-parallel degrees are valid, and the sizes they give."""

from __future__ import annotations

import pytest

from jaxinfer.config import ConfigError
from jaxinfer.models.registry import model_config
from jaxinfer.models.shape import ModelShape, valid_tp
from tests.jaxinfer.models.hub_configs import ALL


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
            assert shape.heads == heads
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
    assert ModelShape.of(config, 1) == ModelShape(tp=1, kv_heads=8, group=4, vocab=128257, mlp=14337)
    assert ModelShape.of(config, 8) == ModelShape(tp=8, kv_heads=8, group=4, vocab=128264, mlp=14344)
    assert ModelShape.of(config, 16) == ModelShape(tp=16, kv_heads=16, group=2, vocab=128272, mlp=14352)
    assert ModelShape.of(config, 32) == ModelShape(tp=32, kv_heads=32, group=1, vocab=128288, mlp=14368)


@pytest.mark.parametrize("tp", [True, 1.0, "2", -1])
def test_only_positive_integers_are_degrees(tp: object) -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        ModelShape.of(model_config(ALL["Llama-3.1-8B"]), tp)  # type: ignore[arg-type]
