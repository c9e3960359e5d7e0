"""The work that `scripts/device_check.py` says its cases need, against a count made another way; its random weights."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from pallas_kernels.qtensor import QTensor, dequantize

pytestmark = pytest.mark.longer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/device_check.py` has it


from device_checks import attention_cases  # noqa: E402
from device_checks.engine_sizes import LeastWork  # noqa: E402
from device_checks.settings import Settings  # noqa: E402
from model_shapes import SHAPES  # noqa: E402


@pytest.mark.parametrize("rehearse", [False, True])
def test_needed_work_of_attention_is_what_counting_gives(rehearse: bool, tmp_path: Path) -> None:
    cases = attention_cases.attention_cases(Settings(tmp_path, tmp_path, rehearse))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        visible = sum(sum(range(length - count + 1, length + 1)) for count, length in case.rows)
        assert case.needed_flops == 2 * 2 * case.heads.query * case.heads.dim * visible
        bytes_of_value = 2 if case.kv_dtype == "bfloat16" else 1
        scales = 0 if case.kv_dtype == "bfloat16" else 4
        keys = sum(length for _, length in case.rows)
        assert case.needed_bytes == 2 * keys * case.heads.kv * (case.heads.dim * bytes_of_value + scales)
        assert len(case.rows) <= case.num_rows
        assert sum(count for count, _ in case.rows) <= case.num_tokens
        assert max(length for _, length in case.rows) <= case.row_tokens


def test_needed_work_of_the_engine_is_that_of_the_model() -> None:
    """Weights that a decode step reads: all matrices but the embedding."""
    from jaxinfer.memory_plan import abstract_model
    from jaxinfer.models.registry import model_config
    from jaxinfer.sharding import make_mesh

    raw = SHAPES["tiny"]
    model = abstract_model("tiny", model_config(raw), "bfloat16", make_mesh())
    matrices = [leaf for leaf in jax.tree.leaves(model.params) if leaf.ndim > 1]
    embedding = raw["vocab_size"] * raw["hidden_size"]
    work = LeastWork.of(raw)
    assert work.decode_bytes(0, 0) == 2 * (sum(math.prod(leaf.shape) for leaf in matrices) - embedding)
    config, mixer = model.config, model.config.layers[0].mixer
    per_token = 2 * config.num_layers * mixer.num_kv_heads * mixer.head_dim * 2
    assert work.decode_bytes(3, 100) - work.decode_bytes(0, 0) == 300 * per_token
    assert work.prompt_flops(2, 1) == work.decode_bytes(0, 0) * 2 + 2 * 4 * config.num_layers * mixer.num_heads * (
        mixer.head_dim
    )


@pytest.mark.parametrize("scheme", ["int8", "int4", "fp8"])
def test_needed_quantized_work_is_that_of_the_model(scheme: str) -> None:
    """As a GPU keeps it: the demo of the sizes is that of `jaxinfer plan`."""
    from jaxinfer.memory_plan import abstract_model
    from jaxinfer.models.parameters import ParameterFacts
    from jaxinfer.models.registry import model_config
    from jaxinfer.models.stored_matrix import StoredMatrix
    from jaxinfer.quantization import placing_of
    from jaxinfer.sharding import make_mesh

    raw = SHAPES["tiny"]
    config, mesh = model_config(raw), make_mesh()
    model = abstract_model("tiny", config, "bfloat16", mesh)
    stored = StoredMatrix(scheme, 128 if scheme == "int4" else None)  # type: ignore[arg-type]
    matrices = [leaf for leaf in jax.tree.leaves(model.params["layers"]) if leaf.ndim > 1]
    needed = 0
    for leaf in matrices:
        inputs = 3 if leaf.ndim == 4 and leaf.shape[0] == config.hidden_size else 1
        facts = ParameterFacts((None,) * leaf.ndim, inputs)
        needed += placing_of("a matrix", leaf.shape, facts, stored, mesh).as_stored.nbytes
    vocabulary = 2 * raw["vocab_size"] * raw["hidden_size"]
    assert LeastWork.of(raw, scheme).decode_bytes(0, 0) == needed + vocabulary


def test_needed_work_of_products_is_that_of_their_weights() -> None:
    from device_checks import product_cases, product_ours

    from pallas_kernels.dispatch import DeviceTarget

    hopper = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
    cases = product_cases.product_cases(Settings(Path(), Path()))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        _, weight = product_ours.abstract_arguments(case, hopper, None)
        assert case.needed_bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weight))


def test_needed_work_of_grouped_products_is_that_of_touched_experts() -> None:
    from device_checks import expert_cases, expert_products

    from pallas_kernels.dispatch import DeviceTarget

    hopper = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
    cases = expert_cases.expert_cases(Settings(Path(), Path()))
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        sizes = case.group_sizes
        assert sum(sizes) == case.rows
        assert max(sizes) <= case.tokens  # no token has an expert twice
        x, weight, _ = expert_products.abstract_arguments(case, hopper, None)
        everything = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weight))
        touched = sum(size > 0 for size in sizes)
        assert case.needed_bytes * len(sizes) == everything * touched
        assert case.needed_flops == 2 * x.size * weight.shape[1]


def test_random_weights_are_the_models_shapes() -> None:
    from device_checks.random_model import random_model

    from jaxinfer.config import ParallelConfig
    from jaxinfer.memory_plan import abstract_model
    from jaxinfer.models.registry import model_config
    from jaxinfer.sharding import make_mesh

    config, mesh = model_config(SHAPES["tiny"]), make_mesh(ParallelConfig(tensor=2))
    for scheme in (None, "int8"):
        made = random_model("tiny", config, mesh, quantization=scheme)
        for got, wanted in zip(
            jax.tree.leaves(made.params),
            jax.tree.leaves(abstract_model("tiny", config, "bfloat16", mesh, scheme).params),
            strict=True,
        ):
            assert (got.shape, got.dtype, got.sharding) == (wanted.shape, wanted.dtype, wanted.sharding)
        for leaf in jax.tree.leaves(made.params, is_leaf=lambda x: isinstance(x, QTensor)):
            values = np.asarray(dequantize(leaf) if isinstance(leaf, QTensor) else leaf, np.float32)
            assert (values == 1).all() if values.ndim == 1 else 0.015 < values.std() < 0.025
