"""Quantized folders that cannot be used, or not as asked: errors that name file, tensor, expected and found."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from checkpoints.convert import convert
from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.quantized.mapping import read_quantization
from jaxinfer.config import ConfigError, ParallelConfig
from jaxinfer.memory_plan import abstract_model
from jaxinfer.sharding import make_mesh
from serving.commands.plan import main as plan_command
from tests.checkpoints.folders import edit_json
from tests.checkpoints.quantized import packers
from tests.checkpoints.quantized.models import HIDDEN, Pair, edit_tensors, read_tensors, tiny, write_pair
from tests.checkpoints.quantized.packers import Packed
from tests.checkpoints.quantized.test_formats import (
    AWQ,
    CASES,
    FLOAT,
    FP8,
    FP8_TOKENS,
    GPTQ,
    INT8_TOKENS,
    MXFP4,
    compressed,
    parameters,
    whole,
    write_once,
)
from tests.checkpoints.test_quantized_load import matrices

LAYER = "model.layers.0."
Q, K, DOWN = f"{LAYER}self_attn.q_proj", f"{LAYER}self_attn.k_proj", f"{LAYER}mlp.down_proj"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return write_once(tmp_path_factory)


@pytest.fixture
def folder(originals: Callable[[str], Pair], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a case to damage."""
    return lambda name: shutil.copytree(originals(name).quantized, tmp_path / name)


def tensor(folder: Path, name: str) -> np.ndarray:
    return read_tensors(folder)[name]


def changed(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array[index] = value
    return array


def refused(folder: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_model(folder)
    assert str(folder) in str(caught.value)


SCALES = {
    "awq-32": f"{Q}.scales",
    "gptq-64": f"{Q}.scales",
    "packed": f"{Q}.weight_scale",
    "int8": f"{Q}.weight_scale",
    "float8": f"{Q}.weight_scale",
    "fp8-blocks": f"{Q}.weight_scale_inv",
    "fp8": f"{Q}.weight_scale",
}


@pytest.mark.parametrize("name", SCALES)
def test_scales_that_are_missing(folder: Callable[[str], Path], name: str) -> None:
    made = folder(name)
    edit_tensors(made, {SCALES[name]: None})
    refused(made, rf"tensor {SCALES[name]} is missing; expected shape \(.*\) in a linear layer of 128 outputs")


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scales_that_are_not_finite(folder: Callable[[str], Path], name: str, value: float) -> None:
    made = folder(name)
    scales = tensor(made, SCALES[name])
    edit_tensors(made, {SCALES[name]: changed(scales, (-1,) * scales.ndim, value)})
    refused(made, rf"model\.safetensors: tensor {SCALES[name]}: expected finite values, found NaN or infinity")


@pytest.mark.parametrize("name", SCALES)
def test_scales_of_a_wrong_shape(folder: Callable[[str], Path], name: str) -> None:
    made = folder(name)
    edit_tensors(made, {SCALES[name]: np.ones((3, 5), np.float32)})
    refused(made, rf"model\.safetensors: tensor {SCALES[name]}: expected shape .*, found \(3, 5\)")


@pytest.mark.parametrize(
    ("suffix", "change", "words"),
    [
        ("scales", None, rf"tensor {Q}\.weight_scales is missing; expected shape \(128, 4\) in a linear layer of 128"),
        ("blocks", None, rf"tensor {Q}\.weight_blocks is missing; expected shape \(128, 4, 16\) in a linear layer"),
        (
            "blocks",
            np.zeros((128, 4, 32), np.uint8),
            rf"model\.safetensors: tensor {Q}\.weight_blocks: expected shape \(128, 4, 16\), found \(128, 4, 32\)",
        ),
        (
            "scales",
            np.zeros((128, 3), np.uint8),
            rf"model\.safetensors: tensor {Q}\.weight_scales: expected shape \(128, 4\), found \(128, 3\)",
        ),
        (
            "scales",
            np.zeros((128, 4), np.float32),
            rf"model\.safetensors: tensor {Q}\.weight_scales: expected dtype U8, found F32",
        ),
        (
            "scales",
            np.where(np.arange(512).reshape(128, 4) == 511, np.uint8(255), np.uint8(120)),
            rf"model\.safetensors: tensor {Q}\.weight_scales: expected scales up to 254, found 255, NaN",
        ),
    ],
)
def test_mxfp4_that_cannot_be(
    folder: Callable[[str], Path], suffix: str, change: np.ndarray | None, words: str
) -> None:
    made = folder("mxfp4")
    edit_tensors(made, {f"{Q}.weight_{suffix}": change})
    refused(made, words)


def test_mxfp4_has_whole_blocks(folder: Callable[[str], Path]) -> None:
    made = folder("mxfp4")
    edit_json(made / "config.json", hidden_size=144)
    refused(made, rf"{Q} has 144 inputs; groups of 32 must divide them")


def test_tensors_of_a_wrong_type(folder: Callable[[str], Path]) -> None:
    made = folder("awq-32")
    edit_tensors(made, {f"{Q}.scales": tensor(made, f"{Q}.scales").astype(np.int16)})
    refused(made, rf"tensor {Q}\.scales: expected dtype F16, BF16, F32, found I16")
    made = folder("float8")
    edit_tensors(made, {f"{Q}.weight": np.zeros((HIDDEN, HIDDEN), ml_dtypes.float8_e5m2)})
    refused(made, rf"tensor {Q}\.weight: expected dtype F8_E4M3, found F8_E5M2")


def test_tensors_of_another_format(folder: Callable[[str], Path]) -> None:
    """What the settings do not call for is left over, and a dense weight is no quantized one."""
    made = folder("gptq-64")
    edit_tensors(made, {f"{Q}.input_scale": np.ones((), np.float32)})
    refused(made, rf"tensor {Q}\.input_scale \(\) is left over")
    made = folder("fp8")
    edit_json(made / "config.json", quantization_config=FP8 | {"weight_block_size": [128, 128]})
    refused(made, rf"tensor {Q}\.weight_scale_inv is missing")


def test_float8_that_is_nan(folder: Callable[[str], Path]) -> None:
    made = folder("fp8-blocks")
    edit_tensors(made, {f"{DOWN}.weight": changed(tensor(made, f"{DOWN}.weight"), (3, 7), np.nan)})
    refused(made, rf"tensor {DOWN}\.weight: expected finite values, found NaN")


def test_symmetric_weights_with_zero_points(folder: Callable[[str], Path]) -> None:
    made = folder("gptq-64")
    edit_tensors(made, {f"{Q}.qzeros": changed(tensor(made, f"{Q}.qzeros"), (0, 0), 5)})
    refused(made, rf"tensor {Q}\.qzeros: expected zero points of 8, because quantization_config\.sym is true")


def test_orders_of_inputs_that_cannot_be(folder: Callable[[str], Path]) -> None:
    made = folder("gptq-order")
    index = tensor(made, f"{Q}.g_idx")
    for place, value in ((0, 4), (0, -1), (slice(0, 33), 1)):
        edit_tensors(made, {f"{Q}.g_idx": changed(index.copy(), place, value)})
        refused(made, rf"tensor {Q}\.g_idx: expected 4 groups of 32 inputs, found others")
    edit_tensors(made, {f"{Q}.g_idx": None})
    refused(made, rf"tensor {Q}\.g_idx is missing")
    made = folder("gptq-64")
    edit_tensors(made, {f"{Q}.g_idx": tensor(made, f"{Q}.g_idx")[::-1].copy()})
    refused(made, rf"tensor {Q}\.g_idx: expected input i in group i // 64, because .*desc_act is false")


@pytest.mark.parametrize(("name", "suffix"), [("gptq-order", "g_idx"), ("packed-order", "weight_g_idx")])
def test_layers_that_are_one_matrix_have_one_order(folder: Callable[[str], Path], name: str, suffix: str) -> None:
    made = folder(name)
    edit_tensors(made, {f"{K}.{suffix}": np.roll(tensor(made, f"{K}.{suffix}"), 1)})
    refused(made, rf"tensor {K}\.{suffix}: expected the order of inputs of {Q}.*layers\.0\.attention\.qkv\.weight")


def test_a_packed_shape_that_is_another(folder: Callable[[str], Path]) -> None:
    made = folder("packed")
    edit_tensors(made, {f"{Q}.weight_shape": np.array([HIDDEN, 2 * HIDDEN])})
    refused(made, rf"tensor {Q}\.weight_shape: expected the values \(128, 128\), found \(128, 256\)")


def test_biases_that_the_model_lacks_are_zeros(folder: Callable[[str], Path]) -> None:
    """AutoGPTQ writes a bias for every layer."""
    made = folder("gptq-64")
    edit_tensors(made, {f"{DOWN}.bias": np.zeros(HIDDEN, np.float16)})
    load_model(made)
    edit_tensors(made, {f"{DOWN}.bias": changed(np.zeros(HIDDEN, np.float16), 3, 1e-3)})
    refused(made, rf"tensor {DOWN}\.bias: expected zeros, because the model has no such bias")


SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("packed", {"ignore": []}, r"quantizes lm_head; supported are the layers' matrices only"),
    ("packed", {"ignore": ["lm_head", "re:.*k_proj"]}, rf"stores {Q} as StoredMatrix.*, and {K} as None; they are one"),
    ("packed", {"ignore": ["Linear"]}, r"quantizes no linear layer of this model"),
]


@pytest.mark.parametrize(("name", "changes", "words"), SETTINGS)
def test_settings_that_do_not_fit_the_model(
    folder: Callable[[str], Path], name: str, changes: dict[str, Any], words: str
) -> None:
    made = folder(name)
    edit_json(made / "config.json", quantization_config=CASES[name].settings | changes)
    refused(made, rf"config\.json: quantization_config {words}")


def test_targets_that_match_nothing(folder: Callable[[str], Path]) -> None:
    made = folder("packed")
    settings = compressed("pack-quantized", whole(4))
    settings["config_groups"]["group_0"]["targets"] = ["Linear", "Embedding"]
    edit_json(made / "config.json", quantization_config=settings)
    refused(made, r"config\.json: quantization_config has the targets \['Embedding'\], which match no linear layer")


def test_groups_that_do_not_divide_the_inputs(folder: Callable[[str], Path]) -> None:
    made = folder("gptq-64")
    edit_json(made / "config.json", hidden_size=144, quantization_config=GPTQ | {"group_size": 64})
    refused(made, rf"{Q} has 144 inputs; groups of 64 must divide them")


def test_splitting_between_devices(folder: Callable[[str], Path]) -> None:
    made = folder("gptq-v2")  # 256 inputs of mlp.down in groups of 64; 128 of attention.out
    abstract(made, tp=2)
    words = r"size is 4; layers\.0\.attention\.out\.weight has 128 inputs, stored in groups of 64: it must split them"
    with pytest.raises(ConfigError, match=words):
        load_model(made, mesh=make_mesh(ParallelConfig(tensor=4)))
    with pytest.raises(ConfigError, match=words):
        abstract(made, tp=4)


def test_a_width_that_would_be_padded(folder: Callable[[str], Path]) -> None:
    made = folder("int8")
    edit_json(made / "config.json", intermediate_size=255)
    with pytest.raises(ConfigError, match=r"tensor_parallel_size is 2; with quantized matrices it must divide .* 255"):
        load_model(made, mesh=make_mesh(ParallelConfig(tensor=2)))


def abstract(folder: Path, tp: int = 1, quantization: str | None = None) -> Any:
    config = read_config(folder)[0]
    quantized = read_quantization(folder, config)
    assert quantized is not None
    mesh = make_mesh(ParallelConfig(tensor=tp))
    return abstract_model("tiny", config, "float32", mesh, quantization, quantized.stored)


def test_quantizing_twice_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    made = folder("awq-32")
    words = r"quantization is 'int8', but the checkpoint is quantized already \(int4\); it must be None"
    with pytest.raises(ConfigError, match=words):
        load_model(made, quantization="int8")
    with pytest.raises(ConfigError, match=words):
        abstract(made, quantization="int8")
    with pytest.raises(CheckpointError, match=r"config\.json: expected no quantization_config"):
        convert(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SMALL = ["--num-pages", "20", "--max-num-seqs", "8", "--max-num-batched-tokens", "8", "--max-model-len", "64"]


def test_the_command_line_plans_and_refuses(
    folder: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = folder("packed")
    (made / "model.safetensors").unlink()  # the config is enough
    assert plan_command([str(made), *SMALL], hub_cache=tmp_path) == 0
    assert "weights" in capsys.readouterr().out
    assert plan_command([str(made), "--quantization", "int4"], hub_cache=tmp_path) == 2
    assert "quantized already" in capsys.readouterr().err


def mixed_pack(random: np.random.Generator) -> Callable[[str, int, int], Packed | None]:
    """Attention in int8, gate and up in float8, down dense."""

    def pack(module: str, outputs: int, inputs: int) -> Packed | None:
        if module == DOWN:
            return None
        packer = packers.int_quantized if "self_attn" in module else packers.float_quantized
        return packer(random, outputs, inputs)

    return pack


MIXED = compressed("mixed-precision", {}, ignore=["lm_head", "re:.*down_proj$"]) | {
    "config_groups": {
        "attention": {
            "targets": ["re:.*self_attn.*"],
            "weights": whole(8, strategy="channel", group_size=None),
            "input_activations": INT8_TOKENS,
            "format": "int-quantized",
        },
        "mlp": {"targets": ["Linear"], "weights": FLOAT, "input_activations": FP8_TOKENS, "format": "float-quantized"},
    }
}


def test_layers_of_several_kinds(tmp_path: Path) -> None:
    pair = write_pair(tmp_path, tiny("llama"), MIXED, mixed_pack(np.random.default_rng(5)))
    model, dense = load_model(pair.quantized), parameters(load_model(pair.dense))
    assert set(matrices(model)) == {
        f"layers.0.{name}.weight" for name in ("attention.qkv", "attention.out", "mlp.gate_up")
    }
    down = parameters(model)["layers.0.mlp.down.weight"]
    np.testing.assert_array_equal(np.asarray(down), np.asarray(dense["layers.0.mlp.down.weight"]))


@pytest.mark.parametrize(
    "settings",
    [
        AWQ | {"group_size": 32, "modules_to_not_convert": ["mlp"]},
        GPTQ | {"group_size": 32, "modules_in_block_to_quantize": [["self_attn.q_proj", "k_proj"], ["v_proj"]]},
        MXFP4 | {"modules_to_not_convert": ["model.layers.*.mlp", "lm_head"]},
    ],
    ids=["awq", "gptq", "mxfp4"],
)
def test_layers_that_are_not_quantized(tmp_path: Path, settings: dict[str, Any]) -> None:
    packer: Callable[..., Packed] = {
        "awq": functools.partial(packers.awq, group=32),
        "gptq": functools.partial(packers.gptq, group=32),
        "mxfp4": packers.mxfp4,
    }[settings["quant_method"]]
    random = np.random.default_rng(5)
    chosen = ("q_proj", "k_proj", "v_proj", "o_proj")[: 3 if settings["quant_method"] == "gptq" else 4]

    def pack(module: str, outputs: int, inputs: int) -> Packed | None:
        return packer(random, outputs, inputs) if module.endswith(chosen) else None

    model = load_model(write_pair(tmp_path, tiny("qwen2"), settings, pack).quantized)
    names = ["attention.out", "attention.qkv"][-1 if settings["quant_method"] == "gptq" else -2 :]
    assert sorted(matrices(model)) == [f"layers.0.{name}.weight" for name in names]
