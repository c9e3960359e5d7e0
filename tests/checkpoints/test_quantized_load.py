"""Matrices quantized at load: the same from both kinds of folder, in the right places, near the original."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh
from safetensors.numpy import load_file

from checkpoints.convert import convert
from checkpoints.files import CheckpointError
from checkpoints.load import load_model
from checkpoints.verify import dense_logits
from jaxinfer.config import ConfigError, ParallelConfig, RuntimeConfig
from jaxinfer.memory_plan import abstract_model, make_plan
from jaxinfer.models.model import Model
from jaxinfer.models.stored_matrix import input_axes
from jaxinfer.quantization import SCHEMES
from jaxinfer.sharding import make_mesh
from pallas_kernels.qtensor import QTensor, dequantize
from tests.checkpoints.folders import edit_tensors, write_golden, write_small_llama
from tests.golden_recipe import write_checkpoint
from tests.jaxinfer.resized import eight_experts_with_biases

PROMPT = [3, 17, 5, 60, 2, 41, 9, 30, 11]


def matrices(model: Model) -> dict[str, QTensor]:
    paths = jax.tree_util.tree_flatten_with_path(model.params, is_leaf=lambda x: isinstance(x, QTensor))[0]
    named = {".".join(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in paths}
    return {name: leaf for name, leaf in named.items() if isinstance(leaf, QTensor)}


@pytest.mark.parametrize(
    "scheme", [each if each == "int8" else pytest.param(each, marks=pytest.mark.longer) for each in SCHEMES]
)
def test_the_model_computes_with_the_rounded_weights(tmp_path: Path, scheme: str) -> None:
    """Against the plain model with the same weights widened again, and that against the original."""
    source = write_small_llama(tmp_path / "hf", hidden=64, mlp=96)
    plain, rounded = load_model(source), load_model(source, quantization=scheme)
    assert len(matrices(rounded)) == 4 * plain.config.num_layers

    def widen(weight: Any, like: Any) -> Any:
        return dequantize(weight).reshape(like.shape) if isinstance(weight, QTensor) else weight

    params = jax.tree.map(widen, rounded.params, plain.params, is_leaf=lambda x: isinstance(x, QTensor))
    original, widened, got = (
        dense_logits(model, PROMPT) for model in (plain, dataclasses.replace(plain, params=params), rounded)
    )
    # Activations have 8 bits on a CPU, but for MXFP4: half a step of 1/127 a product, over a dozen of them.
    assert relative(got, widened) < (1e-5 if scheme == "mxfp4" else 0.03)
    # 15 steps err by a tenth of a random weight's deviation, float8 by 2 % of each weight, 255 steps by half a percent;
    # eight matrices lie in a row. MXFP4's steps are an eighth of a weight on average.
    limits = {"int4": 0.5, "mxfp4": 0.5, "fp8": 0.2, "fp8-dynamic": 0.2}
    assert 0 < relative(widened, original) < limits.get(scheme, 0.05)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_both_kinds_of_folder_give_the_same_bits(tmp_path: Path) -> None:
    source = write_golden(tmp_path / "hf", "llama")
    convert(source, tmp_path / "out")
    streamed, restored = (matrices(load_model(folder, quantization="int8")) for folder in (source, tmp_path / "out"))
    assert streamed.keys() == restored.keys()
    for name, one in streamed.items():
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(restored[name]), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=name)


@pytest.mark.parametrize("tp", [2, 4])
def test_on_several_devices_the_numbers_are_the_same(tmp_path: Path, tp: int) -> None:
    """Scales of whole inputs are the largest over all devices' shares, so that the numbers do not depend on them."""
    source = write_golden(tmp_path / "hf", "llama_tp8")
    one = load_model(source, quantization="int8")
    many = load_model(source, quantization="int8", mesh=make_mesh(ParallelConfig(tensor=tp)))
    for name, weight in matrices(many).items():
        assert not weight.values.sharding.is_fully_replicated
        whole = matrices(one)[name]
        if weight.shape != whole.shape:  # KV heads are repeated, or the width is padded
            continue
        np.testing.assert_array_equal(np.asarray(weight.values), np.asarray(whole.values), err_msg=name)
        np.testing.assert_array_equal(np.asarray(weight.scales), np.asarray(whole.scales), err_msg=name)
    logits = [dense_logits(model, PROMPT) for model in (one, many)]
    # Sums of several devices are rounded differently, which may move an activation to the next of 255 steps.
    np.testing.assert_allclose(logits[1], logits[0], atol=2e-2 * np.abs(logits[0]).max())


def experts_of(model: Model, x: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What the experts of layer 1 make of x (T, D)."""

    def run(params: Any, x: jax.Array) -> jax.Array:
        return nnx.merge(model.graphdef, params).layers[1].moe(x, None)[0]

    with jax.set_mesh(mesh):
        return np.asarray(jax.jit(run)(model.params, x))


@pytest.mark.longer
@pytest.mark.parametrize(
    ("scheme", "tensor", "expert"), [("int8", 1, 4), ("int8", 2, 2), ("fp8", 1, 2), ("mxfp4", 1, 2), ("mxfp4", 2, 1)]
)
def test_quantized_experts_are_dealt_to_devices(tmp_path: Path, scheme: str, tensor: int, expert: int) -> None:
    width = 64 if scheme == "mxfp4" else 33  # whole blocks of 32 on each device
    source = write_checkpoint(eight_experts_with_biases(width), tmp_path / "hf")
    mesh = make_mesh(ParallelConfig(tensor=tensor, expert=expert))
    one, many = load_model(source, quantization=scheme), load_model(source, quantization=scheme, mesh=mesh)
    for name, weight in matrices(many).items():
        if ".moe." not in name:
            continue
        assert weight.values.addressable_shards[0].data.shape[0] == 8 // expert
        whole = matrices(one)[name]
        kept = tuple(slice(0, size) for size in whole.values.shape)  # the width may be padded
        np.testing.assert_array_equal(np.asarray(weight.values)[kept], np.asarray(whole.values), err_msg=name)
        np.testing.assert_array_equal(np.asarray(weight.scales)[kept], np.asarray(whole.scales), err_msg=name)
    x = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    wanted = experts_of(one, x, make_mesh())
    # int8 rounds activations to 8 bits before `down`, on each device by the largest of its share of the width.
    limit = 1e-5 if tensor == 1 or scheme == "mxfp4" else 2e-2
    np.testing.assert_allclose(experts_of(many, x, mesh), wanted, atol=limit * np.abs(wanted).max())


@pytest.mark.longer
def test_the_plan_counts_what_the_model_takes(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf", hidden=64, mlp=96)
    model = load_model(source, quantization="int8")
    leaves = jax.tree.leaves(model.params)
    abstract = abstract_model("small", model.config, model.dtype, make_mesh(), "int8")
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(abstract.params)] == [(x.shape, x.dtype) for x in leaves]
    sizes = {"max_num_seqs": 8, "max_num_batched_tokens": 8, "num_pages": 20, "max_model_len": 64}
    report = make_plan("small", model.config, RuntimeConfig(quantization="int8", **sizes), make_mesh())
    plain = make_plan("small", model.config, RuntimeConfig(**sizes), make_mesh())
    assert report.weight_bytes == sum(leaf.nbytes for leaf in leaves)
    assert report.parameters == plain.parameters


def test_norms_and_vocabulary_keep_their_type(tmp_path: Path) -> None:
    model = load_model(write_small_llama(tmp_path / "hf", hidden=64, mlp=96), quantization="int4")
    assert {name.rsplit(".", 2)[-2] for name in matrices(model)} == {"qkv", "out", "gate_up", "down"}
    assert input_axes("embed.weight") is None
    assert input_axes("layers.0.attention.qkv.bias") is None
    for weight in matrices(model).values():
        assert np.isfinite(np.asarray(dequantize(weight))).all()


def test_bad_input_is_named(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf", hidden=64, mlp=96)
    with pytest.raises(ConfigError, match="quantization is 'int3'; it must be one of int8, int4"):
        load_model(source, quantization="int3")
    with pytest.raises(ConfigError, match="quantization is 'int3'; it must be one of int8, int4"):
        RuntimeConfig(quantization="int3")  # type: ignore[arg-type]

    name = "model.layers.1.mlp.down_proj.weight"
    weight = np.array(load_file(source / "model.safetensors")[name])
    weight[1, 3] = np.inf
    edit_tensors(source, {name: weight})
    with pytest.raises(CheckpointError, match=r"mlp\.down\.weight holds values that are not finite; it has no scale"):
        load_model(source, quantization="int8")
    with pytest.raises(CheckpointError, match=r"mlp\.down\.weight holds values that are not finite; it has no scale"):
        load_model(source, quantization="mxfp4")
    with pytest.raises(
        ConfigError, match=r"mlp\.down\.weight has 48 inputs on a device; 32 must divide them for mxfp4"
    ):
        load_model(write_small_llama(tmp_path / "odd-blocks"), quantization="mxfp4")
    with pytest.raises(
        ConfigError,
        match=r"layers\.0\.mlp\.down\.weight has 48 inputs on a device; one of 128, 64, 32 must divide them for int4",
    ):
        load_model(write_small_llama(tmp_path / "odd"), quantization="int4")
