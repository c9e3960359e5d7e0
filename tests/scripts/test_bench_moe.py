"""Figures of the benchmark of experts, its random models, and the grouped products that it compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as `python scripts/bench_moe.py` has it

import bench_moe  # noqa: E402
import make_random_model  # noqa: E402
from bench import grouped_products  # noqa: E402

from checkpoints.load import load_model  # noqa: E402
from jaxinfer.config import MoeConfig  # noqa: E402
from jaxinfer.memory_plan import count_parameters  # noqa: E402
from jaxinfer.models.registry import model_config  # noqa: E402


def test_the_twin_has_the_active_parameters_of_the_mixture_but_its_routers() -> None:
    mixture, twin = (model_config(make_random_model.SHAPES[name]) for name in (bench_moe.MIXTURE, bench_moe.TWIN))
    moe = mixture.layers[0].feed_forward
    assert isinstance(moe, MoeConfig)
    assert (moe.num_experts, moe.router.experts_per_token) == (64, 8)
    routers = mixture.num_layers * moe.num_experts * mixture.hidden_size
    assert count_parameters(mixture)[1] == count_parameters(twin)[0] + routers


def test_ratios_are_those_of_a_round_against_bytes_and_the_twin() -> None:
    def reading(wall: float) -> dict[str, float]:
        return {"wall": wall, "process": 2 * wall}

    mixture = {"single": [reading(2.0)], "batch16": [reading(5.0)], "prefill": [reading(8.0)]}
    twin = {"single": [reading(1.0)], "batch16": [reading(1.0)], "prefill": [reading(4.0)]}
    of_an_expert, layers = bench_moe.expert_bytes()
    assert (of_an_expert, layers) == (3 * 1024 * 256 * 2, 8)
    bandwidth = 32.0 * of_an_expert * layers / 3  # 32 experts of each layer in 3 seconds
    found = bench_moe.step_ratios([mixture, twin], [bandwidth], 32.0, "wall")
    assert found["single"] == 2.0
    assert found["batch16"] == pytest.approx(5.0 / (3.0 + 1.0))
    assert found["prefill"] == pytest.approx(0.5, rel=1e-2)  # routers are active, and the twin has none


def test_what_misses_a_bar_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_moe.show({"single": {"wall": 1.2, "process": 9.0}, "prefill": {"wall": 0.71, "process": 0.1}})
    assert not bench_moe.show({"single": {"wall": 1.31, "process": 1.0}})
    assert not bench_moe.show({"transformers": {"wall": 1.9}})
    assert capsys.readouterr().out.count("no") == 2


def test_a_random_mixture_is_one_that_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_hidden_layers": 1, "hidden_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 64}
    shape = make_random_model.SHAPES[bench_moe.MIXTURE] | small | {"moe_intermediate_size": 8, "head_dim": 8}
    monkeypatch.setitem(make_random_model.SHAPES, "small", shape)
    size = make_random_model.write_model("small", tmp_path / "small")
    tensors = load_file(tmp_path / "small" / "model.safetensors")
    assert size == sum(tensor.nbytes for tensor in tensors.values())
    assert json.loads((tmp_path / "small" / "config.json").read_text()) == shape
    params = load_model(tmp_path / "small").params
    down = tensors["model.layers.0.mlp.experts.3.down_proj.weight"]
    np.testing.assert_array_equal(np.asarray(params["layers"][0]["moe"]["down"]["weight"])[3], down)


@pytest.mark.longer
def test_grouped_products_agree_and_are_timed() -> None:
    (row,) = grouped_products.measure(1, tokens=(8,), experts=((8, 2),))
    assert set(row.milliseconds) == {"C++", "XLA blocks", "ragged_dot"}
    assert all(0 < time < 1e5 for time in row.milliseconds.values())
    assert (row.tokens, row.experts, row.chosen) == (8, 8, 2)
    assert 2 <= row.touched <= 8
