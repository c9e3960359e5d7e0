"""Folders of mixtures of experts that cannot be used: errors that name file, tensor, expected and found."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.quantized.mapping import read_quantization
from jaxinfer.config import ConfigError
from tests.checkpoints.folders import edit_json, edit_tensors
from tests.golden_recipe import load_case, write_checkpoint

Tensors = Mapping[str, np.ndarray | None]


def shape_of(case: str, tensor: str) -> tuple[int, ...]:
    return load_case(case).tensors[tensor]


def resized(case: str, tensor: str, axis: int, by: int) -> Tensors:
    """The tensor with `by` elements more along an axis."""
    shape = list(shape_of(case, tensor))
    shape[axis] += by
    return {tensor: np.ones(shape, np.float32)}


def another(case: str, tensor: str, name: str) -> Tensors:
    """A tensor of that name and of the other's shape."""
    return {name: np.ones(shape_of(case, tensor), np.float32)}


QWEN, MIXTRAL = "model.layers.1.mlp.experts", "model.layers.0.block_sparse_moe.experts"
GLM, OSS = "model.layers.2.mlp", "model.layers.1.mlp.experts"
GRANITE = "model.layers.0.block_sparse_moe"
# name: (golden case, what is wrong, the tensor that the error names, what else it says)
BAD: dict[str, tuple[str, Callable[[], Tensors], str, str]] = {
    "an expert's matrix is missing": (
        "qwen3_moe", lambda: {f"{QWEN}.2.up_proj.weight": None},
        f"{QWEN}.2.up_proj.weight", "is missing; expected shape {shape} for layers.1.moe.gate_up.weight",
    ),
    "the last expert's down is missing": (
        "mixtral", lambda: {f"{MIXTRAL}.{{last}}.w2.weight": None},
        f"{MIXTRAL}.{{last}}.w2.weight", "is missing; expected shape {shape} for layers.0.moe.down.weight",
    ),
    "the router is missing": (
        "qwen3_moe", lambda: {"model.layers.1.mlp.gate.weight": None},
        "model.layers.1.mlp.gate.weight", "is missing; expected shape {shape} for layers.1.moe.router.weight",
    ),
    "the shared expert is missing": (
        "glm4_moe", lambda: {f"{GLM}.shared_experts.up_proj.weight": None},
        f"{GLM}.shared_experts.up_proj.weight", "is missing; expected shape {shape} for layers.2.moe.shared.gate_up",
    ),
    "the correction is missing": (
        "glm4_moe", lambda: {f"{GLM}.gate.e_score_correction_bias": None},
        f"{GLM}.gate.e_score_correction_bias", "is missing; expected shape {shape} for layers.2.moe.correction",
    ),
    "one expert is wider": (
        "qwen3_moe", lambda: resized("qwen3_moe", f"{QWEN}.3.gate_proj.weight", 0, 1),
        f"{QWEN}.3.gate_proj.weight", "expected shape {shape} for layers.1.moe.gate_up.weight, found {found}",
    ),
    "one expert has another input": (
        "mixtral", lambda: resized("mixtral", f"{MIXTRAL}.1.w2.weight", 1, -1),
        f"{MIXTRAL}.1.w2.weight", "expected shape {shape} for layers.0.moe.down.weight, found {found}",
    ),
    "the router knows one expert more": (
        "qwen3_moe", lambda: resized("qwen3_moe", "model.layers.1.mlp.gate.weight", 0, 1),
        "model.layers.1.mlp.gate.weight", "expected shape {shape} for layers.1.moe.router.weight, found {found}",
    ),
    "all experts in one tensor, one too few": (
        "gpt_oss", lambda: resized("gpt_oss", f"{OSS}.gate_up_proj", 0, -1),
        f"{OSS}.gate_up_proj", "expected shape {shape} for layers.1.moe.gate_up.weight, found {found}",
    ),
    "their bias is of another width": (
        "gpt_oss", lambda: resized("gpt_oss", f"{OSS}.down_proj_bias", 1, 1),
        f"{OSS}.down_proj_bias", "expected shape {shape} for layers.1.moe.down.bias, found {found}",
    ),
    "stacked experts of another width": (
        "granite_moe", lambda: resized("granite_moe", f"{GRANITE}.input_linear.weight", 1, 2),
        f"{GRANITE}.input_linear.weight", "expected shape {shape} for layers.0.moe.gate_up.weight, found {found}",
    ),
    "an expert too many": (
        "qwen3_moe", lambda: another("qwen3_moe", f"{QWEN}.0.up_proj.weight", f"{QWEN}.{{count}}.up_proj.weight"),
        f"{QWEN}.{{count}}.up_proj.weight", "is left over: expected no such tensor in a Qwen3MoeForCausalLM",
    ),
    "an expert's bias": (
        "mixtral", lambda: {f"{MIXTRAL}.0.w1.bias": np.ones(4, np.float32)},
        f"{MIXTRAL}.0.w1.bias", "(4,) is left over: expected no such tensor in a MixtralForCausalLM",
    ),
    "an expert of whole numbers": (
        "qwen3_moe",
        lambda: {f"{QWEN}.1.down_proj.weight": np.ones(shape_of("qwen3_moe", f"{QWEN}.1.down_proj.weight"), np.int32)},
        f"{QWEN}.1.down_proj.weight", "expected dtype F32, F16, BF16, found I32",
    ),
}  # fmt: skip


def experts_of(case: str) -> int:
    config = load_case(case).config
    return next(config[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if key in config)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_tensor_of_an_expert_is_named(tmp_path: Path, name: str) -> None:
    case, make, tensor, words = BAD[name]
    count = experts_of(case)
    numbers = {"count": count, "last": count - 1}
    change = {key.format(**numbers): value for key, value in make().items()}
    tensor = tensor.format(**numbers)
    write_checkpoint(load_case(case), tmp_path)
    edit_tensors(tmp_path, change)
    shape = load_case(case).tensors.get(tensor)
    found = None if change[tensor] is None else change[tensor].shape
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path)
    said = str(caught.value)
    assert said.startswith(str(tmp_path))
    assert f"tensor {tensor}" in said
    assert words.format(shape=shape, found=found) in said
    assert found is None or "model.safetensors" in said


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "moe-magic"}, r"quant_method is 'moe-magic'; it must be one of .*fp8"),
        ({"quant_method": None}, r"quant_method is None; it must be one of"),
        ({"bits": 4}, r"quant_method is None; it must be one of"),
        ("fp8", r"quantization_config is 'fp8'; it must be an object"),
    ],
)
def test_an_unknown_quant_method_is_named(tmp_path: Path, settings: object, words: str) -> None:
    write_checkpoint(load_case("qwen3_moe"), tmp_path)
    edit_json(tmp_path / "config.json", quantization_config=settings)
    with pytest.raises((CheckpointError, ConfigError), match=words) as caught:
        read_quantization(tmp_path, read_config(tmp_path)[0])
    assert re.search(words, str(caught.value))


def test_a_count_of_experts_that_the_tensors_do_not_have(tmp_path: Path) -> None:
    """One more in config.json than in the files: the first tensor that it would need is named."""
    write_checkpoint(load_case("mixtral"), tmp_path)
    count = experts_of("mixtral")
    edit_json(tmp_path / "config.json", num_local_experts=count + 1)
    with pytest.raises(
        CheckpointError, match=r"tensor model\.layers\.0\.block_sparse_moe\.gate\.weight: expected shape"
    ):
        load_model(tmp_path)
