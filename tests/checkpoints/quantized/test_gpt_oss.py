"""gpt-oss as it is published: experts stacked in MXFP4, everything else dense."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.storage import read_storage
from checkpoints.verify import dense_logits
from jaxinfer.memory_plan import abstract_model
from jaxinfer.models.stored_matrix import StoredMatrix
from jaxinfer.sharding import make_mesh
from pallas_kernels.qtensor import QTensor, dequantize
from tests.checkpoints.quantized import packers
from tests.checkpoints.quantized.models import PROMPT, Pair, edit_tensors, read_tensors, write_folder
from tests.checkpoints.quantized.test_formats import parameters
from tests.checkpoints.quantized.test_settings import GPT_OSS
from tests.checkpoints.test_quantized_load import matrices, relative
from tests.golden_recipe import build_config, load_case, tensor

EXPERTS, HIDDEN, WIDTH = 5, 64, 96
LAYER = "model.layers.0.mlp.experts"
# Of one expert's weight (outputs, inputs), which a dense checkpoint has with its inputs first.
SIZES = {"gate_up_proj": (2 * WIDTH, HIDDEN), "down_proj": (HIDDEN, WIDTH)}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    root, case, random = tmp_path_factory.mktemp("gpt_oss"), load_case("gpt_oss"), np.random.default_rng(3)
    config = build_config(case) | {"intermediate_size": WIDTH, "num_hidden_layers": 1}
    config["layer_types"] = config["layer_types"][:1]
    dense, quantized = {}, {}
    for name, spec in case.specs.items():
        if re.match(r"model\.layers\.[1-9]", name):
            continue
        if name == f"{LAYER}.gate_up_proj_bias":
            dense[name] = tensor(case.seed, name, (EXPERTS, 2 * WIDTH), spec.kind, spec.scale)
        elif (parameter := name.removeprefix(f"{LAYER}.")) in SIZES:
            each = [packers.mxfp4(random, *SIZES[parameter], parameter) for _ in range(EXPERTS)]
            dense[name] = np.stack([one.value.T for one in each])
            for suffix in each[0].tensors:
                quantized[f"{LAYER}.{suffix}"] = np.stack([one.tensors[suffix] for one in each])
            continue
        else:
            dense[name] = tensor(case.seed, name, spec.shape, spec.kind, spec.scale)
        quantized[name] = dense[name]
    write_folder(root / "dense", config, {name: np.ascontiguousarray(array) for name, array in dense.items()})
    write_folder(root / "quantized", config | {"quantization_config": GPT_OSS}, quantized)
    return Pair(root / "quantized", root / "dense", {})


def test_experts_are_what_the_dense_ones_are(pair: Pair) -> None:
    dense, model = load_model(pair.dense), load_model(pair.quantized)
    found = matrices(model)
    assert sorted(found) == ["layers.0.moe.down.weight", "layers.0.moe.gate_up.weight"]
    for path, weight in found.items():
        weight.check(path)
        wide = parameters(dense)[path]
        np.testing.assert_array_equal(np.asarray(dequantize(weight)), np.asarray(wide), err_msg=path)
        assert weight.nbytes == wide.size * 17 // 32


@pytest.mark.longer
def test_the_model_is_the_dense_one(pair: Pair) -> None:
    dense, model = load_model(pair.dense), load_model(pair.quantized)
    logits, expected = dense_logits(model, PROMPT), dense_logits(dense, PROMPT)
    assert relative(logits, expected) < 1e-5


def test_the_plan_counts_what_the_model_takes(pair: Pair) -> None:
    config = read_config(pair.quantized)[0]
    stored = read_storage(pair.quantized, config).matrices
    assert set(stored.values()) == {StoredMatrix("mxfp4", 32)}
    abstract = abstract_model("tiny", config, "float32", make_mesh(), None, stored)
    described = [(x.shape, x.dtype) for x in jax.tree.leaves(abstract.params)]
    model = load_model(pair.quantized)
    assert described == [(x.shape, x.dtype) for x in jax.tree.leaves(model.params)]
    assert any(isinstance(x, QTensor) for x in jax.tree.leaves(model.params, is_leaf=lambda x: isinstance(x, QTensor)))


@pytest.mark.parametrize(
    ("suffix", "damage", "words"),
    [
        ("down_proj_scales", lambda found: None, r"down_proj_scales is missing; expected shape \(5, 64, 3\)"),
        ("down_proj_scales", lambda found: found | np.uint8(255), "expected scales up to 254, found 255, NaN"),
        ("gate_up_proj_blocks", lambda found: found[:4], r"expected shape \(5, 192, 2, 16\), found \(4, 192, 2, 16\)"),
        ("gate_up_proj_blocks", lambda found: found[..., :8], r"expected shape .*, found \(5, 192, 2, 8\)"),
    ],
)
def test_what_cannot_be_is_named(pair: Pair, tmp_path: Path, suffix: str, damage, words: str) -> None:
    folder = shutil.copytree(pair.quantized, tmp_path / "damaged")
    name = f"{LAYER}.{suffix}"
    changed = damage(read_tensors(folder)[name])
    edit_tensors(folder, {name: None if changed is None else np.ascontiguousarray(changed)})
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert name in str(caught.value)
    assert str(folder) in str(caught.value)
