"""The language model of a checkpoint of several modalities: found under every spelling of its names, dense, quantized
and converted, and what else is in the file is skipped by name or refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints.convert import convert
from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from jaxinfer.models.model import Model
from jaxinfer.models.wrappers import NOTE
from tests.checkpoints.folders import edit_json, edit_tensors, write_golden
from tests.checkpoints.quantized import packers
from tests.checkpoints.quantized.models import read_tensors, tiny, write_folder, write_pair
from tests.checkpoints.quantized.packers import Packed
from tests.checkpoints.quantized.test_formats import AWQ, FLOAT, FP8, FP8_TOKENS, GPTQ, compressed, whole
from tests.golden_recipe import load_case, write_checkpoint

LLAVA = ("gemma3_whole", "mistral3")
VISUAL = ("qwen2_5_vl", "qwen3_vl")


def same(one: Model, other: Model) -> None:
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def rename(folder: Path, new: Callable[[str], str]) -> Path:
    """Call the tensors of a folder otherwise."""
    tensors = load_file(folder / "model.safetensors")
    save_file({new(name): array for name, array in tensors.items()}, folder / "model.safetensors")
    return folder


def published(name: str) -> str:
    """Gemma 3 and Mistral 3, from the names of transformers' modules."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    return re.sub(r"^model\.(vision_tower|multi_modal_projector)", r"\1", name)


def published_body(name: str) -> str:
    """The same, but the output matrix, as some quantizers save them."""
    return published(name).replace("language_model.lm_head.", "lm_head.")


def published_qwen(name: str) -> str:
    """Qwen 2.5 VL: the language model's names are those that it has alone."""
    return re.sub(r"^model\.visual", "visual", name.replace("model.language_model.", "model."))


SPELLINGS = [
    *((case, spelling) for case in LLAVA for spelling in (published, published_body)),
    ("qwen2_5_vl", published_qwen),
]


@pytest.mark.parametrize(("name", "spelling"), SPELLINGS)
def test_every_published_spelling_is_the_same_model(tmp_path: Path, name: str, spelling: Callable[[str], str]) -> None:
    case = load_case(name)
    modules = load_model(write_checkpoint(case, tmp_path / "modules"))
    files = load_model(rename(write_checkpoint(case, tmp_path / "files"), spelling))
    same(modules, files)
    assert modules.config == files.config
    assert files.config.notes == (NOTE,)


@pytest.mark.parametrize(
    ("said", "tied"),
    [
        ({}, None),
        ({"tie_word_embeddings": True}, True),
        ({"tie_word_embeddings": False}, False),
        ({"text_config": True}, True),
        ({"text_config": False}, False),
        ({"tie_word_embeddings": True, "text_config": False}, None),
        ({"tie_word_embeddings": False, "text_config": True}, None),
    ],
)
@pytest.mark.parametrize(("name", "has_head"), [("mistral3", True), ("qwen3_vl", False)])
def test_the_file_decides_whether_the_head_is_tied_where_the_config_does_not(
    tmp_path: Path, said: dict[str, bool], tied: bool | None, name: str, has_head: bool
) -> None:
    """None: config.json is silent, or says both."""
    folder = write_checkpoint(load_case(name), tmp_path)
    text = json.loads((folder / "config.json").read_text())["text_config"]
    text.pop("tie_word_embeddings", None)
    around = {"tie_word_embeddings": ...} | said
    if "text_config" in around:
        text["tie_word_embeddings"] = around.pop("text_config")
    edit_json(folder / "config.json", **around, text_config=text)
    config, _ = read_config(folder)
    assert config.tie_word_embeddings == (not has_head if tied is None else tied)


def test_the_type_is_said_inside_or_by_the_tensors(tmp_path: Path) -> None:
    folder = write_checkpoint(load_case("mistral3"), tmp_path, dtype="bfloat16")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit_json(folder / "config.json", dtype=...)
    assert read_config(folder)[0].dtype == "bfloat16"
    edit_json(folder / "config.json", text_config=text | {"torch_dtype": "float32"})
    assert read_config(folder)[0].dtype == "float32"
    edit_json(folder / "config.json", dtype="bfloat16")
    assert read_config(folder)[0].dtype == "bfloat16"


UNKNOWN = [
    ("mistral3", "model.audio_tower.layers.0.fc1.weight"),
    ("mistral3", "model.visual.blocks.0.attn.qkv.weight"),
    ("gemma3_whole", "vision_model.encoder.layers.0.mlp.fc1.weight"),
    ("gemma3_whole", "model.language_model.layers.4.input_layernorm.weight"),
    ("qwen2_5_vl", "model.vision_tower.patch_conv.weight"),
    ("qwen3_vl", "visuals.merger.weight"),
]


@pytest.mark.parametrize(("name", "tensor"), UNKNOWN)
def test_a_tensor_of_an_unknown_name_is_an_error(tmp_path: Path, name: str, tensor: str) -> None:
    folder = write_checkpoint(load_case(name), tmp_path)
    edit_tensors(folder, {tensor: np.zeros((2, 3), np.float32)})
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor {re.escape(tensor)} \(2, 3\) is left over"):
        load_model(folder)


@pytest.mark.parametrize("spelling", [published, lambda name: name])
def test_a_missing_tensor_is_called_as_the_file_would_call_it(tmp_path: Path, spelling: Callable[[str], str]) -> None:
    folder = rename(write_checkpoint(load_case("mistral3"), tmp_path), spelling)
    name = spelling("model.language_model.layers.1.mlp.up_proj.weight")
    edit_tensors(folder, {name: None})
    with pytest.raises(CheckpointError, match=rf"tensor {re.escape(name)} is missing"):
        load_model(folder)


@pytest.mark.parametrize("name", ["mistral3", "gemma3_whole", "qwen2_5_vl"])
def test_a_conversion_skips_the_others_with_a_reason_and_is_the_same_model(tmp_path: Path, name: str) -> None:
    source = rename(write_golden(tmp_path / "hf", name), published_qwen if name in VISUAL else published)
    report = convert(source, tmp_path / "out")
    others = r"(vision_tower|visual)\." if name in VISUAL else r"(vision_tower|multi_modal_projector)\."
    expected = sorted(tensor for tensor in load_file(source / "model.safetensors") if re.match(others, tensor))
    assert sorted(report.ignored) == expected
    assert expected
    assert all("the language model alone is served" in reason for reason in report.ignored.values())
    dense, converted = load_model(source), load_model(tmp_path / "out")
    same(dense, converted)
    assert converted.config == dense.config  # its end tokens, too, which are read of the copied config.json
    assert converted.config.notes == (NOTE,)


def wrapped(plain: Path, folder: Path, settings: dict[str, Any], *, inside: bool = False) -> Path:
    """A quantized Mistral as the language model of a Mistral 3, beside a vision tower that is quantized, too."""
    text = json.loads((plain / "config.json").read_text())
    for key in ("quantization_config", "architectures", "torch_dtype", "dtype"):
        text.pop(key, None)
    config = load_case("mistral3").config | {
        "text_config": text,
        "tie_word_embeddings": text.pop("tie_word_embeddings"),
    }
    if inside:
        config |= {"text_config": text | {"quantization_config": settings}}
    else:
        config |= {"quantization_config": settings}
    tensors = {f"language_model.{name}": array for name, array in read_tensors(plain).items()}
    tower = "vision_tower.transformer.layers.0.attention.q_proj"
    tensors |= {f"{tower}.qweight": np.zeros((4, 4), np.int32), f"{tower}.weight_scale": np.ones(4, np.float32)}
    write_folder(folder, config, tensors)
    return folder


Packer = Callable[[np.random.Generator, int, int], Packed]
# Settings, and the key that names layers that are not quantized. Names are those of the modules in memory, not of the
# file.
FORMATS: dict[str, tuple[dict[str, Any], str | None, Packer]] = {
    "awq": (AWQ | {"group_size": 32}, "modules_to_not_convert", lambda *sizes: packers.awq(*sizes, 32)),
    "gptq": (GPTQ | {"group_size": 32}, None, lambda *sizes: packers.gptq(*sizes, 32)),
    "fp8": (FP8 | {"weight_block_size": [128, 128]}, "modules_to_not_convert", packers.float_blocks),
    "packed": (compressed("pack-quantized", whole(4)), "ignore", lambda *sizes: packers.pack_quantized(*sizes, 32)),
    "float8": (compressed("float-quantized", FLOAT, FP8_TOKENS), "ignore", packers.float_quantized),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantized_language_model_is_the_same_alone_and_among_others(tmp_path: Path, name: str) -> None:
    settings, key, packer = FORMATS[name]
    random = np.random.default_rng(5)

    def pack(module: str, outputs: int, inputs: int) -> Packed | None:
        return None if key is not None and module.endswith("o_proj") else packer(random, outputs, inputs)

    def skipping(*names: str) -> dict[str, Any]:
        return settings if key is None else settings | {key: list(names)}

    pair = write_pair(tmp_path / "alone", tiny("mistral"), skipping("model.layers.0.self_attn.o_proj", "lm_head"), pack)
    alone = load_model(pair.quantized)
    others = ("model.vision_tower", "model.multi_modal_projector", "language_model.lm_head")
    modules = skipping("model.language_model.layers.0.self_attn.o_proj", *others)
    same(alone, load_model(wrapped(pair.quantized, tmp_path / "modules", modules)))
    files = skipping("language_model.model.layers.0.self_attn.o_proj", *others)
    same(alone, load_model(wrapped(pair.quantized, tmp_path / "files", files, inside=True)))


def test_patterns_of_settings_are_read_in_both_spellings(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    groups = compressed("pack-quantized", whole(4))
    pair = write_pair(
        tmp_path / "alone", tiny("mistral"), groups, lambda _, *sizes: packers.pack_quantized(random, *sizes, 32)
    )
    alone = load_model(pair.quantized)
    targets = [r"re:model\.language_model\.layers\..*proj", "re:.*vision_tower.*"]
    groups["config_groups"] = {"group_0": groups["config_groups"]["group_0"] | {"targets": targets}}
    groups["ignore"] = ["re:^(?!.*language_model).*", "re:.*lm_head"]
    same(alone, load_model(wrapped(pair.quantized, tmp_path / "wrapped", groups)))


@pytest.mark.parametrize("inside", [False, True])
def test_faults_of_settings_name_where_they_stand(tmp_path: Path, inside: bool) -> None:
    random = np.random.default_rng(5)
    pair = write_pair(
        tmp_path / "alone",
        tiny("mistral"),
        AWQ | {"group_size": 32},
        lambda _, *sizes: packers.awq(random, *sizes, 32),
    )
    folder = wrapped(pair.quantized, tmp_path / "wrapped", AWQ | {"group_size": 32, "bits": 3}, inside=inside)
    where = r"text_config\.quantization_config" if inside else r"config\.json: quantization_config"
    with pytest.raises(CheckpointError, match=rf"{where}\.bits is 3"):
        load_model(folder)
