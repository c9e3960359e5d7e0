"""A quantizing conversion holds what rounding at load gives, bit for bit, and loads wherever a dense one does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from checkpoints.convert import convert
from checkpoints.files import CONFIG_FILE, CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import load_model
from checkpoints.quantizing.options import Quantizing
from checkpoints.storage import read_storage, with_stored_defaults
from checkpoints.verify import dense_logits
from jaxinfer.config import ConfigError, ParallelConfig, RuntimeConfig
from jaxinfer.llm import LLM
from jaxinfer.memory_plan import abstract_model, make_plan
from jaxinfer.models.model import Model
from jaxinfer.sharding import make_mesh
from pallas_kernels.qtensor import QTensor
from tests.checkpoints.folders import edit_json, write_small_llama, write_tokenizer
from tests.checkpoints.quantized.models import PROMPT, tiny, write_folder

SIZES = {"max_num_seqs": 8, "max_num_batched_tokens": 8, "num_pages": 20, "max_model_len": 64}


def source_of(root: Path, family: str = "llama", layers: int = 2) -> Path:
    model = tiny(family, layers)
    write_folder(root, model.config, model.tensors)
    write_tokenizer(root)
    return root


def leaves(model: Model) -> dict[str, Any]:
    found = jax.tree_util.tree_flatten_with_path(model.params)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in found}


def assert_same(one: Model, other: Model) -> None:
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    expected = leaves(other)
    for name, leaf in leaves(one).items():
        np.testing.assert_array_equal(np.asarray(leaf), np.asarray(expected[name]), err_msg=name)
        assert leaf.sharding == expected[name].sharding


LONGER = [
    ("int8", "bfloat16"), ("fp8", "bfloat16"), ("fp8-dynamic", "bfloat16"), ("int4", "float32"), ("mxfp4", "bfloat16"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [("int4", "bfloat16"), ("w8a8", "bfloat16"), *(pytest.param(*one, marks=pytest.mark.longer) for one in LONGER)],
)
def test_the_bits_are_those_of_rounding_at_load(tmp_path: Path, scheme: str, dtype: str) -> None:
    source = source_of(tmp_path / "hf", "qwen2", layers=1)
    convert(source, tmp_path / "out", dtype=dtype, quantizing=Quantizing(scheme))
    assert_same(load_model(tmp_path / "out"), load_model(source, dtype=dtype, quantization=scheme))


@pytest.mark.longer
def test_tensor_parallel_loads_give_the_same_numbers(tmp_path: Path) -> None:
    source = source_of(tmp_path / "hf", layers=1)
    convert(source, tmp_path / "out", quantizing=Quantizing("int4", group=32))
    one = load_model(tmp_path / "out")
    for tp in (2, 4):  # four repeat the two KV heads
        many = load_model(tmp_path / "out", mesh=make_mesh(ParallelConfig(tensor=tp)))
        logits = [dense_logits(model, PROMPT) for model in (one, many)]
        np.testing.assert_allclose(logits[1], logits[0], atol=2e-2 * np.abs(logits[0]).max())
    convert(source, tmp_path / "wide", quantizing=Quantizing("int4", group=128))
    with pytest.raises(ConfigError, match=r"mlp\.down\.weight has 256 inputs, stored in groups of 128"):
        load_model(tmp_path / "wide", mesh=make_mesh(ParallelConfig(tensor=4)))


def test_int8_on_two_devices_is_int8_on_one(tmp_path: Path) -> None:
    source = source_of(tmp_path / "hf", layers=1)
    convert(source, tmp_path / "out", quantizing=Quantizing("int8"))
    assert_same(
        *(
            load_model(folder, mesh=make_mesh(ParallelConfig(tensor=2)), **options)
            for folder, options in ((tmp_path / "out", {}), (source, {"quantization": "int8"}))
        )
    )


def test_what_the_folder_says_and_takes(tmp_path: Path) -> None:
    """The report's bytes are those on disk, and the plan knows them from JSON alone."""
    source = source_of(tmp_path / "hf")
    report = convert(source, tmp_path / "out", quantizing=Quantizing("int4", kv_cache_dtype="int8"))
    assert report.quantization is not None
    described = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert described["format_version"] == 2
    assert described["storage"]["kv_cache_dtype"] == "int8"
    assert described["storage"]["matrices"]["layers.1.mlp.down.weight"] == {
        "kind": "int4", "group": 128, "zeros": False, "order": False, "activations": None,
    }  # fmt: skip
    config, _ = read_config(tmp_path / "out")
    storage = read_storage(tmp_path / "out", config)
    assert len(storage.matrices) == len(report.quantization.matrices) == 8
    dense = report.parameter_count * 4
    saved = sum(row.bytes_before - row.bytes_after for row in report.quantization.matrices)
    assert report.parameter_bytes == dense - saved
    assert sum(described["files"].values()) < dense - 0.9 * saved
    plan = make_plan("q", config, RuntimeConfig(**SIZES), make_mesh(), storage.matrices)
    loaded = load_model(tmp_path / "out")
    assert plan.weight_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(loaded.params))
    abstract = abstract_model("q", config, "float32", make_mesh(), stored=storage.matrices)
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(abstract.params)] == [
        (x.shape, x.dtype) for x in jax.tree.leaves(loaded.params)
    ]


def test_the_type_of_the_kv_cache_is_a_default(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf")
    convert(source, tmp_path / "out", quantizing=Quantizing(kv_cache_dtype="int8"))
    config, _ = read_config(tmp_path / "out")
    assert with_stored_defaults(tmp_path / "out", config, RuntimeConfig()).kv_cache_dtype == "int8"
    explicit = RuntimeConfig(kv_cache_dtype="float32")
    assert with_stored_defaults(tmp_path / "out", config, explicit) is explicit
    assert with_stored_defaults(source, config, RuntimeConfig()).kv_cache_dtype == "auto"
    assert_same(load_model(tmp_path / "out"), load_model(source))


@pytest.mark.longer
def test_an_engine_serves_it_with_its_kv_cache(tmp_path: Path) -> None:
    source = write_small_llama(tmp_path / "hf", hidden=64, mlp=96)
    convert(source, tmp_path / "out", quantizing=Quantizing("int8", kv_cache_dtype="int8"))
    answers = {}
    for name, model, options in (
        ("stored", tmp_path / "out", {}),
        ("asked", source, {"quantization": "int8", "kv_cache_dtype": "int8"}),
    ):
        with LLM(model, **SIZES, **options, compilation_cache_dir=None) as llm:  # type: ignore[arg-type]
            (out,) = llm.generate([{"prompt_token_ids": PROMPT}])
            answers[name] = (out.outputs[0].token_ids, llm.info.notes, llm.info.extra["weight_bytes"])
    assert answers["stored"] == answers["asked"]


def test_rounding_it_again_is_refused(tmp_path: Path) -> None:
    convert(source_of(tmp_path / "hf", layers=1), tmp_path / "out", quantizing=Quantizing("int8"))
    with pytest.raises(ConfigError, match=r"quantization is 'int4', but the checkpoint is quantized already \(int8\)"):
        load_model(tmp_path / "out", quantization="int4")
    with pytest.raises(CheckpointError, match="this is a converted checkpoint already"):
        convert(tmp_path / "out", tmp_path / "again", quantizing=Quantizing("int4"))


DOWN = "layers.0.mlp.down.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 1}, r"storage is there; it goes with format_version 2"),
        ({"storage": {}}, r"storage is \{\}; it must be an object of kv_cache_dtype and matrices"),
        ({"storage": {"kv_cache_dtype": "int4", "matrices": {}}}, r"kv_cache_dtype is 'int4'; it must be null or one"),
        (
            {"storage": {"kv_cache_dtype": None, "matrices": {"layers.9.mlp.down.weight": {}}}},
            r"matrices\['layers.9.mlp.down.weight'\]: there is no such matrix in 1 layers",
        ),
        (
            {"storage": {"kv_cache_dtype": None, "matrices": {DOWN: {"kind": "int8"}}}},
            "must be an object of activations",
        ),
    ],
)
def test_a_description_that_is_not_known_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    convert(source_of(tmp_path / "hf", layers=1), tmp_path / "out", quantizing=Quantizing("int8"))
    edit_json(tmp_path / "out" / CONFIG_FILE, **change)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path / "out")


@pytest.mark.parametrize(("field", "value"), [("kind", "int3"), ("group", 7), ("zeros", 1), ("activations", "int4")])
def test_a_matrix_that_is_not_known_is_refused(tmp_path: Path, field: str, value: Any) -> None:
    convert(source_of(tmp_path / "hf", layers=1), tmp_path / "out", quantizing=Quantizing("int4"))
    path = tmp_path / "out" / CONFIG_FILE
    storage = json.loads(path.read_text())["storage"]
    storage["matrices"][DOWN][field] = value
    edit_json(path, storage=storage)
    with pytest.raises(CheckpointError, match=rf"\.{field} is {value!r}; it must be"):
        read_config(tmp_path / "out")


def test_parts_that_do_not_fit_the_description_are_refused(tmp_path: Path) -> None:
    convert(source_of(tmp_path / "hf", layers=1), tmp_path / "out", quantizing=Quantizing("int4"))
    path = tmp_path / "out" / CONFIG_FILE
    storage = json.loads(path.read_text())["storage"]
    storage["matrices"][DOWN] |= {"kind": "int8", "group": None}
    edit_json(path, storage=storage)
    with pytest.raises(CheckpointError, match=rf"parameter {DOWN}\.values: expected int8 \(128, 256\), found uint8"):
        load_model(tmp_path / "out")
    storage["matrices"][DOWN] |= {"kind": "fp8", "zeros": True}
    edit_json(path, storage=storage)
    with pytest.raises(CheckpointError, match=r"\.zeros is True; it must be False for fp8"):
        load_model(tmp_path / "out")
    for change, words in (
        ({"group": 64}, "group is 64; for mxfp4 it must be 32 and divide the 256 inputs"),
        ({"zeros": True}, "zeros is True; it must be False for mxfp4"),
        ({"order": True}, "order is True; it must be False for mxfp4"),
        ({"activations": "int8"}, "activations is 'int8'; it must be null for mxfp4"),
    ):
        plain = {"kind": "mxfp4", "group": 32, "zeros": False, "order": False, "activations": None}
        storage["matrices"][DOWN] = plain | change
        edit_json(path, storage=storage)
        with pytest.raises(CheckpointError, match=words):
            read_config(tmp_path / "out")
    storage["matrices"].pop(DOWN)
    edit_json(path, storage=storage)
    with pytest.raises(CheckpointError, match=rf"parameter {DOWN} is missing"):
        load_model(tmp_path / "out")


def test_dense_conversions_are_as_they_were(tmp_path: Path) -> None:
    """Readers that know format version 1 only still take them."""
    convert(write_small_llama(tmp_path / "hf"), tmp_path / "out")
    described = json.loads((tmp_path / "out" / CONFIG_FILE).read_text())
    assert described["format_version"] == 1
    assert "storage" not in described
    assert not any(isinstance(leaf, QTensor) for leaf in jax.tree.leaves(load_model(tmp_path / "out").params))
