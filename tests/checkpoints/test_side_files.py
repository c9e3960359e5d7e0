"""What other files of a folder say about its weights: read, or refused by name before anything is planned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.reader import open_checkpoint
from checkpoints.side_files import tensor_names, unnamed_model_files
from checkpoints.storage import read_storage
from serving.commands.plan import main as plan_command
from tests.checkpoints.folders import edit_json, write_small_llama

AUTO_AWQ_OLD = {"zero_point": True, "q_group_size": 128, "w_bit": 4, "version": "GEMM"}
WIDE = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32}


def config_only(folder: Path, **changes: Any) -> Path:
    write_small_llama(folder)
    (folder / "model.safetensors").unlink()
    edit_json(folder / "config.json", **changes)
    return folder


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("pytorch_model.bin", "pytorch_model.bin is a pickle, which can run code"),
        ("pytorch_model-00001-of-00002.bin", "is a pickle"),
        ("model-Q4_K_M.gguf", "model-Q4_K_M.gguf is GGUF"),
        ("consolidated.safetensors", "consolidated.safetensors has the names and layout of the publisher's own code"),
        ("consolidated.00.pth", "consolidated.00.pth has the names and layout"),
        ("adapter_model.safetensors", "adapter_model.safetensors is a LoRA adapter"),
        ("adapter_config.json", "adapter_config.json is a LoRA adapter"),
        ("tf_model.h5", "tf_model.h5 is TensorFlow's"),
        ("flax_model.msgpack", "flax_model.msgpack is Flax's"),
        ("model.onnx", "model.onnx is ONNX"),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_weights_of_another_kind_are_named(tmp_path: Path, file: str, words: str, with_config: bool) -> None:
    folder = config_only(tmp_path / "model")
    if not with_config:
        (folder / "config.json").unlink()
    (folder / file).write_bytes(b"{}")
    with pytest.raises(CheckpointError) as error:
        read_config(folder)
    assert words in str(error.value)
    assert "expected" in str(error.value)


def test_the_publishers_own_config_is_named_unless_there_is_another(tmp_path: Path) -> None:
    folder = config_only(tmp_path / "model")
    (folder / "params.json").write_text("{}")
    read_config(folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json describes a model in the layout of its publisher's own"):
        read_config(folder)


def test_the_plan_refuses_them_as_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = config_only(tmp_path / "model")
    (folder / "model.gguf").write_bytes(b"GGUF")
    assert plan_command([str(folder)], hub_cache=tmp_path) == 2
    assert "model.gguf is GGUF" in capsys.readouterr().err


def test_an_adapter_beside_a_model_is_said(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path / "model")
    assert read_config(folder)[0].notes == ()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (note,) = read_config(folder)[0].notes
    assert note.startswith("adapter_config.json is not read")
    load_model(folder)


@pytest.mark.parametrize(
    ("file", "settings", "kind", "group"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 64, "desc_act": False, "sym": True}, "int4", 64),
        ("quantize_config.json", {"bits": 8, "group_size": -1, "model_file_base_name": "gptq"}, "int8", None),
        ("quant_config.json", AUTO_AWQ_OLD, "int4", 128),
        ("quantize_config.json", {**AUTO_AWQ_OLD, "modules_to_not_convert": None}, "int4", 128),
        ("quant_config.json", {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}, "int4", 32),
    ],
)
def test_files_of_quantizers(tmp_path: Path, file: str, settings: dict[str, Any], kind: str, group: int | None) -> None:
    folder = config_only(tmp_path / "model", **WIDE)
    (folder / file).write_text(json.dumps(settings))
    stored = read_storage(folder, read_config(folder)[0]).matrices
    assert {(matrix.kind, matrix.group) for matrix in stored.values()} == {(kind, group)}


def test_config_json_counts_before_them(tmp_path: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    folder = config_only(tmp_path / "model", **WIDE, quantization_config=settings)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 8, "group_size": 64}))
    stored = read_storage(folder, read_config(folder)[0]).matrices
    assert {(matrix.kind, matrix.group) for matrix in stored.values()} == {("int4", 32)}


def test_what_they_say_wrong_is_said_with_their_name(tmp_path: Path) -> None:
    folder = config_only(tmp_path / "model", **WIDE)
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 3, "group_size": 64}))
    with pytest.raises(CheckpointError, match=r"quantize_config\.json: bits is 3; it must be one of \[4, 8\]"):
        read_config(folder)
    (folder / "quant_config.json").write_text(json.dumps(AUTO_AWQ_OLD))
    with pytest.raises(CheckpointError, match=r"has quantize_config\.json and quant_config\.json; expected one"):
        read_config(folder)
    (folder / "quantize_config.json").unlink()
    (folder / "quant_config.json").write_text(json.dumps(AUTO_AWQ_OLD | {"w_bit": 3}))
    with pytest.raises(CheckpointError, match=r"quant_config\.json: w_bit is 3; it must be one of \[4\]"):
        read_config(folder)
    (folder / "quant_config.json").write_text(json.dumps(AUTO_AWQ_OLD | {"surprise": 3}))
    with pytest.raises(CheckpointError, match=r"quant_config\.json: it has surprise = 3, which is not known"):
        read_config(folder)
    (folder / "quant_config.json").unlink()
    edit_json(folder / "config.json", compression_config={"format": "marlin-24"})
    with pytest.raises(CheckpointError, match=r"config\.json: compression_config\.format is 'marlin-24'"):
        read_config(folder)


def test_modelopt_is_named(tmp_path: Path) -> None:
    folder = config_only(tmp_path / "model")
    described = {"producer": {"name": "modelopt", "version": "0.29.0"}, "quantization": {"quant_algo": "FP8"}}
    (folder / "hf_quant_config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"hf_quant_config\.json: quant_algo is 'FP8': .*ModelOpt"):
        read_config(folder)
    (folder / "hf_quant_config.json").unlink()
    edit_json(folder / "config.json", quantization_config=described)
    with pytest.raises(CheckpointError, match=r"quant_method is None \(written by modelopt\)"):
        read_config(folder)


def test_compression_config_is_the_same_under_its_old_name(tmp_path: Path) -> None:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    settings = {"format": "pack-quantized", "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    settings["ignore"] = ["lm_head"]
    folder = config_only(tmp_path / "model", **WIDE, compression_config=settings)
    stored = read_storage(folder, read_config(folder)[0]).matrices
    assert {(matrix.kind, matrix.group) for matrix in stored.values()} == {("int4", 32)}


def test_the_architecture_is_named_before_the_quantization(tmp_path: Path) -> None:
    bits = {"quant_method": "bitsandbytes"}
    mixture = config_only(tmp_path / "mixture", architectures=["JambaForCausalLM"], quantization_config=bits)
    with pytest.raises(CheckpointError, match="architecture 'JambaForCausalLM' is not supported"):
        read_config(mixture)
    experts = config_only(tmp_path / "experts", num_local_experts=8, quantization_config=bits)
    with pytest.raises(CheckpointError, match="num_local_experts: this is a mixture of experts"):
        read_config(experts)
    edit_json(experts / "config.json", num_local_experts=...)
    with pytest.raises(CheckpointError, match="quant_method is 'bitsandbytes'"):
        read_config(experts)


@pytest.mark.parametrize(
    ("tensor", "who"),
    [
        ("model.layers.0.self_attn.q_proj.qweight", "GPTQ or AWQ"),
        ("model.layers.0.mlp.down_proj.weight_packed", "compressed-tensors"),
        ("model.layers.0.mlp.down_proj.weight_scale_inv", "fp8"),
        ("model.layers.0.mlp.down_proj.weight_scale", "compressed-tensors, fp8 or ModelOpt"),
        ("model.layers.0.mlp.down_proj.weight.absmax", "bitsandbytes"),
    ],
)
@pytest.mark.parametrize("sharded", [True, False])
def test_quantized_tensors_without_words_are_named(tmp_path: Path, tensor: str, who: str, sharded: bool) -> None:
    folder = write_small_llama(tmp_path / "model")
    if sharded:  # an index alone is enough
        (folder / "model.safetensors").unlink()
        index = {"weight_map": {tensor: "model-00001-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file({tensor: np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        read_config(folder)
    assert f"tensor {tensor} is of a quantized layer ({who}), but config.json has no quantization_config" in str(
        error.value
    )


@pytest.mark.parametrize("data", [b"", b"\x04", b"\xff" * 16, b"\x02" + b"\0" * 7 + b"{]", b"\x02" + b"\0" * 7 + b"[]"])
def test_a_broken_header_is_left_to_the_reader(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    assert tensor_names(tmp_path) == ()
    with pytest.raises(CheckpointError):
        open_checkpoint(tmp_path)


DTYPES = {"bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float32": np.float32}


@pytest.mark.parametrize(
    ("stored", "dtype"), [("bfloat16", "bfloat16"), ("float16", "bfloat16"), ("float32", "float32")]
)
@pytest.mark.parametrize("said", [{}, {"dtype": None}, {"torch_dtype": "auto"}, {"dtype": "auto", "torch_dtype": None}])
def test_a_config_without_dtype_follows_its_tensors(
    tmp_path: Path, stored: str, dtype: str, said: dict[str, Any]
) -> None:
    folder = write_small_llama(tmp_path / "model")
    edit_json(folder / "config.json", **({"torch_dtype": ...} | said))
    tensors = load_file(folder / "model.safetensors")
    kept = {"model.norm.weight"}  # one norm in float32 does not make the model float32
    save_file(
        {name: array if name in kept else array.astype(DTYPES[stored]) for name, array in tensors.items()},
        folder / "model.safetensors",
    )
    assert read_config(folder)[0].dtype == dtype
    if not said and stored == "float16":
        assert load_model(folder).dtype == dtype
    edit_json(folder / "config.json", dtype="float32", torch_dtype=...)
    assert read_config(folder)[0].dtype == "float32"


def test_a_config_without_dtype_or_tensors_is_float32(tmp_path: Path) -> None:
    assert read_config(config_only(tmp_path / "model", torch_dtype=...))[0].dtype == "float32"


def shards(folder: Path, count: int) -> dict[str, str]:
    """Splits model.safetensors; returns the weight map."""
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    weight_map = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        part = names[number::count]
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    return weight_map


def only_other_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "gptq_model-4bit-128g.safetensors")


def shards_without_index(folder: Path) -> None:
    shards(folder, 3)
    (folder / "model.safetensors").unlink()


def merged(folder: Path) -> None:
    """The index of shards that are gone."""
    weight_map = shards(folder, 2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for file in set(weight_map.values()):
        (folder / file).unlink()


def model_is_a_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    first, *rest = sorted(tensors)
    save_file({first: tensors[first]}, folder / "extra.safetensors")
    save_file({name: tensors[name] for name in rest}, folder / "model.safetensors")
    weight_map = dict.fromkeys(rest, "model.safetensors") | {first: "extra.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("change", [only_other_name, shards_without_index, merged, model_is_a_shard])
def test_ways_to_store_one_model(tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = write_small_llama(tmp_path / "model")
    names = set(load_file(folder / "model.safetensors"))
    change(folder)
    read_config(folder)
    with open_checkpoint(folder) as source:
        assert set(source.names) == names


def test_contradictions_between_file_and_index_are_refused(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path / "model")
    names = list(load_file(folder / "model.safetensors"))
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*names, "lost"], "model.safetensors")}))
    with pytest.raises(CheckpointError, match="tensor lost is missing"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[1:], "model.safetensors")}))
    with pytest.raises(CheckpointError, match=r"is not named by model\.safetensors\.index\.json"):
        open_checkpoint(folder)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[1:], "gone.safetensors")}))
    with pytest.raises(CheckpointError, match="do not name the same tensors"):
        open_checkpoint(folder)
    save_file({"a": np.zeros(1, np.float32)}, folder / "gone.safetensors")
    with pytest.raises(CheckpointError, match=r"has both .* with its shards \(gone\.safetensors"):
        open_checkpoint(folder)


def test_which_files_are_one_model(tmp_path: Path) -> None:
    def make(*names: str) -> list[str]:
        for path in tmp_path.iterdir():
            path.unlink()
        for name in names:
            (tmp_path / name).touch()
        return unnamed_model_files(tmp_path)

    assert make("any.safetensors") == ["any.safetensors"]
    assert make("any.safetensors", "adapter_model.safetensors") == ["any.safetensors"]
    assert make("m-1-of-2.safetensors", "m-2-of-2.safetensors") == ["m-1-of-2.safetensors", "m-2-of-2.safetensors"]
    assert make("m-1-of-2.safetensors", "m-2-of-3.safetensors") == []
    assert make("m-1-of-3.safetensors", "m-2-of-3.safetensors") == []
    assert make("a.safetensors", "b.safetensors") == []
    assert make("consolidated.safetensors") == []
