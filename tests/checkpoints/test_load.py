"""Loading: both kinds of folder give the same bits in the same places, on any number of devices; faults are named."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from checkpoints.convert import convert
from checkpoints.files import CONFIG_FILE, REPORT_FILE, CheckpointError
from checkpoints.folder import read_config
from checkpoints.load import decoder_parameters, load_model
from checkpoints.store import flatten
from checkpoints.tensor_assembly import DTYPES, expand
from checkpoints.verify import dense_logits
from jaxinfer.config import ConfigError, ParallelConfig
from jaxinfer.models.model import Model
from jaxinfer.models.shape import ModelShape
from jaxinfer.sharding import make_mesh, named_sharding
from tests.checkpoints.folders import edit_json, write_golden, write_small_llama
from tests.golden_recipe import load_case

# One case per family, and per family the degrees to try: GQA with repeated heads, padding of both kinds, whole norms.
DEGREES = {
    "llama": (1, 2, 4),
    "mistral": (1, 2),
    "qwen2": (1, 2, 4),
    "qwen3": (1, 2),
    "gemma2": (1, 2),
    "gemma3": (1, 4),
    "phi3": (1, 2, 4),
    "olmo2": (1, 2, 4),
    "granite": (1, 2),
    "smollm": (1, 3),
    "smollm3": (1, 2),
    "arcee_bias": (1, 2),
    "apertus": (1, 4),
    "nemotron_nas": (1, 2, 4),
    "low_rank": (1, 2, 4),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], tuple[Path, Path]]:
    """(case, dtype) -> (Hugging Face folder in that dtype, converted checkpoint); made once per session."""
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def get(case: str, dtype: str) -> tuple[Path, Path]:
        if (case, dtype) not in made:
            root = tmp_path_factory.mktemp(f"{case}-{dtype}")
            source = write_golden(root / "hf", case, dtype=dtype)
            convert(source, root / "converted")
            made[case, dtype] = (source, root / "converted")
        return made[case, dtype]

    return get


def leaves(model: Model) -> dict[str, jax.Array]:
    return dict(flatten(_with_string_keys(model.params)))


def _with_string_keys(tree: dict) -> dict:
    return {str(k): _with_string_keys(v) if isinstance(v, dict) else v for k, v in tree.items()}


def assert_same_bits(one: jax.Array, other: jax.Array) -> None:
    assert one.dtype == other.dtype
    assert one.sharding == other.sharding
    np.testing.assert_array_equal(np.asarray(one).view(np.uint8), np.asarray(other).view(np.uint8))


COMBINATIONS = [(case, tp, "float32") for case, degrees in DEGREES.items() for tp in degrees]
COMBINATIONS += [(case, tp, "bfloat16") for case in ("llama", "phi3", "olmo2") for tp in (1, 2, 4)]


@pytest.mark.parametrize(
    ("case", "tp", "dtype"),
    [each if each[1] == 1 else pytest.param(*each, marks=pytest.mark.longer) for each in COMBINATIONS],
)
def test_converted_equals_direct_bit_for_bit(
    folders: Callable[[str, str], tuple[Path, Path]], case: str, tp: int, dtype: str
) -> None:
    source, converted = folders(case, dtype)
    mesh = make_mesh(ParallelConfig(tensor=tp))
    direct, restored = (load_model(folder, mesh=mesh) for folder in (source, converted))
    assert direct.dtype == restored.dtype == dtype
    assert direct.config == restored.config
    assert direct.shape == restored.shape == ModelShape.of(direct.config, tp)
    assert read_config(source)[1] == read_config(converted)[1]
    one, other = leaves(direct), leaves(restored)
    assert one.keys() == other.keys()
    _, parameters, _ = decoder_parameters(direct.config, direct.shape, DTYPES[dtype])
    for path, array in one.items():
        assert_same_bits(array, other[path])
        assert array.dtype == DTYPES[dtype]
        assert array.sharding == named_sharding(mesh, parameters[path].facts.axes)
        assert array.shape == parameters[path].shape


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
@pytest.mark.parametrize("tp", [1, 4])
def test_loading_in_another_dtype_is_the_same_from_both(
    folders: Callable[[str, str], tuple[Path, Path]], stored: str, tp: int
) -> None:
    wanted = {"float32": "bfloat16", "bfloat16": "float32"}[stored]
    mesh = make_mesh(ParallelConfig(tensor=tp))
    one, other = (leaves(load_model(folder, dtype=wanted, mesh=mesh)) for folder in folders("llama", stored))
    for path, array in one.items():
        assert array.dtype == DTYPES[wanted]
        assert_same_bits(array, other[path])


@pytest.mark.parametrize("kind", [0, 1])
def test_each_device_holds_its_part_and_nothing_else(
    folders: Callable[[str, str], tuple[Path, Path]], kind: int
) -> None:
    folder = folders("qwen2", "float32")[kind]
    tp = 4
    whole, split = load_model(folder), load_model(folder, mesh=make_mesh(ParallelConfig(tensor=tp)))
    _, parameters, _ = decoder_parameters(split.config, split.shape, DTYPES[split.dtype])
    sharded = 0
    for path, array in leaves(split).items():
        canonical = np.asarray(leaves(whole)[path])
        expected = expand(canonical, array.shape, parameters[path].facts.axes)
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), expected[shard.index])
        if not array.is_fully_replicated:
            sharded += 1
            assert sum(shard.data.nbytes for shard in array.addressable_shards) == array.nbytes
    assert sharded > split.config.num_layers * 4  # qkv weight and bias, out, gate_up, down, and the embedding


@pytest.mark.parametrize(("case", "tp"), [("qwen2", 4), ("olmo2", 4), ("smollm", 3)])
def test_a_split_model_still_computes_the_golden_logits(
    folders: Callable[[str, str], tuple[Path, Path]], case: str, tp: int
) -> None:
    """Repeated heads and padding must be what the decoder takes them for. 1e-5: float32 sums in another order."""
    golden = load_case(case)
    model = load_model(folders(case, "float32")[1], mesh=make_mesh(ParallelConfig(tensor=tp)))
    found = dense_logits(model, golden.prompts[1])
    assert np.max(np.abs(found - golden.logits[1])) / np.max(np.abs(golden.logits[1])) <= 1e-5


def test_params_and_graphdef_make_the_decoder(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    model = load_model(folders("llama", "float32")[0])
    decoder = nnx.merge(model.graphdef, model.params)
    assert decoder.config == model.config
    assert decoder.layers[0].attention.qkv.weight.get_value() is model.params["layers"][0]["attention"]["qkv"]["weight"]


@pytest.mark.parametrize("kind", [0, 1])
def test_progress_ends_at_the_total(folders: Callable[[str, str], tuple[Path, Path]], kind: int) -> None:
    calls: list[tuple[int, int, str]] = []
    model = load_model(
        folders("llama", "float32")[kind], progress=lambda done, total, path: calls.append((done, total, path))
    )
    done = [call[0] for call in calls]
    assert done == sorted(done)
    assert done[-1] == calls[0][1] == sum(array.nbytes for array in leaves(model).values())
    assert all(call[2] in leaves(model) for call in calls)


def test_sharded_source_equals_single_file(tmp_path: Path) -> None:
    one = load_model(write_golden(tmp_path / "one", "gemma2"))
    many = load_model(write_golden(tmp_path / "many", "gemma2", shards=5))
    for (path, array), other in zip(leaves(one).items(), leaves(many).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other), err_msg=path)


def test_impossible_degree_lists_the_possible_ones(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    for folder in folders("smollm", "float32"):
        with pytest.raises(ConfigError, match=re.escape("tensor_parallel_size is 2") + ".*" + re.escape("[1, 3, 9]")):
            load_model(folder, mesh=make_mesh(ParallelConfig(tensor=2)))


def test_mesh_with_other_axes_is_refused(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(ConfigError, match=r"mesh axes are \('data',\); expected \('data', 'pipe', 'tensor'"):
        load_model(folders("llama", "float32")[0], mesh=mesh)


def test_unknown_dtype_is_refused(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    with pytest.raises(ConfigError, match="dtype is 'float16'; it must be auto or one of float32, bfloat16"):
        load_model(folders("llama", "float32")[0], dtype="float16")  # type: ignore[arg-type]


@pytest.fixture
def converted(folders: Callable[[str, str], tuple[Path, Path]], tmp_path: Path) -> Path:
    """A copy to damage. Only files are copied, as git would: empty folders do not survive."""
    source = folders("llama", "float32")[1]
    for path in source.rglob("*"):
        if path.is_file():
            target = tmp_path / "copy" / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return tmp_path / "copy"


def data_file(folder: Path) -> Path:
    return max((folder / "params").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError, match=".*".join(re.escape(word) for word in words)):
        load_model(folder)


def test_a_copy_of_the_files_loads(converted: Path, folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    one, other = leaves(load_model(converted)), leaves(load_model(folders("llama", "float32")[0]))
    for path, array in one.items():
        assert_same_bits(array, other[path])


def test_without_a_report_it_does_not_load(converted: Path) -> None:
    (converted / REPORT_FILE).unlink()
    refused(converted, "expected conversion_report.json", "never finished")


def test_truncated_data_is_named(converted: Path) -> None:
    path = data_file(converted)
    size = path.stat().st_size
    os.truncate(path, size - 10)
    refused(converted, str(path), f"expected {size} bytes; found {size - 10}")


def test_absent_data_is_named(converted: Path) -> None:
    path = data_file(converted)
    path.unlink()
    refused(converted, str(path), "it is not there")


def test_damaged_store_is_named(converted: Path) -> None:
    path = converted / "params" / "manifest.ocdbt"
    path.write_bytes(bytes(path.stat().st_size))
    refused(converted, str(converted / "params"), "cannot be restored")


def test_another_format_is_refused(converted: Path) -> None:
    edit_json(converted / CONFIG_FILE, format_version=99)
    refused(converted, CONFIG_FILE, "format_version is 99; expected 1")


def test_incomplete_stored_config_is_refused(converted: Path) -> None:
    edit_json(converted / CONFIG_FILE, files=...)
    refused(converted, CONFIG_FILE, "expected the objects model and files")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hidden_size": 128}, ("parameter embed.weight: expected float32", "found float32")),
        ({"dtype": "bfloat16"}, ("expected bfloat16", "found float32")),
        ({"mixer": {"qkv_bias": True}}, ("parameter layers.0.attention.qkv.bias is missing; expected shape",)),
        ({"tie_word_embeddings": True}, ("parameter lm_head.weight is left over",)),
        ({"no_such_field": 1}, (CONFIG_FILE, "unknown fields ['no_such_field']")),
        ({"mixer": {"num_heads": 7}}, (CONFIG_FILE, "num_heads 7 is not a multiple")),
    ],
)
def test_params_must_match_the_config(converted: Path, changes: dict[str, Any], words: tuple[str, ...]) -> None:
    path = converted / CONFIG_FILE
    model = json.loads(path.read_text())["model"]
    for layer in model["layers"]:
        layer["mixer"] |= changes.get("mixer", {})
    edit_json(path, model=model | {name: value for name, value in changes.items() if name != "mixer"})
    refused(converted, *words)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    refused(tmp_path / "absent", "absent: expected a folder with a model; there is none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "empty: expected config.json (Hugging Face) or jaxinfer_config.json (converted)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"architectures": ', ("config.json: expected JSON", "line 1 column")),
        ("[]", ("config.json: expected a JSON object; found list",)),
        ('{"architectures": ["MambaForCausalLM"]}', ("config.json: architecture 'MambaForCausalLM'", "LlamaForCausal")),
    ],
)
def test_bad_config_is_named(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    folder = write_small_llama(tmp_path)
    (folder / "config.json").write_text(text)
    refused(folder, str(folder), *words)


def test_corrupt_generation_config_is_named(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path)
    (folder / "generation_config.json").write_text("{")
    refused(folder, "generation_config.json: expected JSON")


def test_generation_config_comes_along(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path / "hf")
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "eos_token_id": [257, 258]}')
    convert(folder, tmp_path / "converted")
    for path in (folder, tmp_path / "converted"):
        config, generation = read_config(path)
        assert generation == {"temperature": 0.5, "eos_token_id": [257, 258]}
        assert config.eos_token_ids == (257, 258)


def test_reading_the_config_needs_neither_weights_nor_jax(
    folders: Callable[[str, str], tuple[Path, Path]], tmp_path: Path
) -> None:
    script = (
        "import sys; from pathlib import Path; import checkpoints\n"
        "for folder in sys.argv[1:]: print(checkpoints.read_config(folder)[0].architecture)\n"
        "assert 'jax' not in sys.modules and 'orbax' not in sys.modules, sorted(sys.modules)\n"
    )
    source, converted_folder = folders("llama", "float32")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copyfile(source / "config.json", bare / "config.json")
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", script, str(source), str(converted_folder), str(bare)]
    result = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["LlamaForCausalLM"] * 3


def test_restoring_in_groups_changes_nothing(
    folders: Callable[[str, str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import checkpoints.store as store

    source, restored = folders("llama", "float32")
    monkeypatch.setattr(store, "RESTORE_GROUP_BYTES", 20_000)
    calls: list[int] = []
    model = load_model(restored, progress=lambda done, total, path: calls.append(done))
    assert len(calls) > 3
    for (path, array), other in zip(leaves(model).items(), leaves(load_model(source)).values(), strict=True):
        np.testing.assert_array_equal(np.asarray(array), np.asarray(other), err_msg=path)


def test_few_files_whatever_the_number_of_layers(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    params = folders("llama", "float32")[1] / "params"
    assert sum(path.is_file() for path in params.rglob("*")) <= 30  # how many Orbax writes depends on its threads


def test_no_file_knows_where_it_was_made(folders: Callable[[str, str], tuple[Path, Path]]) -> None:
    folder = folders("llama", "float32")[1]
    here = str(folder.parent).encode()
    assert [path.name for path in folder.rglob("*") if path.is_file() and here in path.read_bytes()] == []
