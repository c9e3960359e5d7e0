"""The safetensors reader: what it hands out, what it refuses, and that its memory can be given back."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints.files import CheckpointError
from checkpoints.reader import open_checkpoint
from tests.checkpoints.folders import raw_safetensors

F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    values = random.standard_normal((5, 3), dtype=np.float32)
    return {
        "f32": values,
        "f16": values.astype(np.float16),
        "bf16": values.astype(ml_dtypes.bfloat16),
        "f64": values.astype(np.float64),
        "i64": np.arange(4, dtype=np.int64) - 2,
        "u8": np.arange(7, dtype=np.uint8),  # odd number of bytes
        "empty": np.zeros((0, 3), np.float32),
        "bool": np.array([True, False, True]),
    }


def assert_equal_tensors(folder: Path, expected: dict[str, np.ndarray]) -> None:
    with open_checkpoint(folder) as source:
        assert set(source.names) == set(expected)
        for name, array in expected.items():
            found = source.read(name)
            assert found.dtype == array.dtype
            assert found.shape == array.shape == source.info(name).shape
            np.testing.assert_array_equal(found.view(np.uint8), array.view(np.uint8))
            source.drop(name)
            np.testing.assert_array_equal(found.view(np.uint8), array.view(np.uint8))  # dropped pages come back


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert_equal_tensors(tmp_path, arrays())


def test_reads_tensors_at_odd_offsets(tmp_path: Path) -> None:
    values = np.array([1.5, -2.0], np.float32)
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    (tmp_path / "model.safetensors").write_bytes(raw_safetensors(header, b"\x07" + values.tobytes()))
    assert_equal_tensors(tmp_path, {"a": np.array([7], np.uint8), "b": values})


def test_views_cannot_write_the_file(tmp_path: Path) -> None:
    save_file(arrays(), tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as source, pytest.raises(ValueError, match="read-only"):
        source.read("f32")[0, 0] = 1.0


def write_shards(folder: Path, shards: dict[str, dict[str, np.ndarray]], weight_map: Any = None) -> None:
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    if weight_map is None:
        weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_reads_shards(tmp_path: Path) -> None:
    everything = arrays()
    halves = [dict(list(everything.items())[:4]), dict(list(everything.items())[4:])]
    write_shards(tmp_path, {"a-1.safetensors": halves[0], "a-2.safetensors": halves[1]})
    assert_equal_tensors(tmp_path, everything)
    with open_checkpoint(tmp_path) as source:
        assert source.files == ("a-1.safetensors", "a-2.safetensors")
        assert source.info("u8").file == "a-2.safetensors"


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "truncated: expected at least 8 bytes, found 0"),
    "half a length": (b"\x10\x00", "truncated: expected at least 8 bytes, found 2"),
    "length beyond the file": (raw_safetensors({}, length=50), "truncated: the header ends at byte 58, the file at"),
    "absurd length": (raw_safetensors({}, length=2**60), f"header length is {2**60}; expected 2 to 100000000"),
    "not JSON": (raw_safetensors(b"{abc}"), "the header is not JSON"),
    "not UTF-8": (raw_safetensors(b"\xff\xfe{}"), "the header is not JSON"),
    "not an object": (raw_safetensors([1, 2]), "the header is list; expected a JSON object"),
    "named twice": (
        raw_safetensors(b'{"w": %s, "w": %s}' % ((json.dumps(F32).encode(),) * 2), bytes(8)),
        "names w twice; expected it once",
    ),
    "truncated data": (raw_safetensors({"w": F32}, bytes(5)), "truncated: the last tensor ends at byte"),
    "bytes left over": (raw_safetensors({"w": F32}, bytes(9)), "has bytes that belong to no tensor"),
    "unknown dtype": (
        raw_safetensors({"w": F32 | {"dtype": "Q3"}}, bytes(8)),
        "tensor w: dtype is 'Q3'; known are F64, F32, F16, BF16",
    ),
    "negative size": (raw_safetensors({"w": F32 | {"shape": [-2]}}, bytes(8)), "tensor w: shape is [-2]"),
    "size is a bool": (raw_safetensors({"w": F32 | {"shape": [True]}}, bytes(8)), "tensor w: shape is [True]"),
    "offsets reversed": (
        raw_safetensors({"w": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
        "tensor w: expected 8 bytes for F32 (2,), found -8",
    ),
    "one offset": (raw_safetensors({"w": F32 | {"data_offsets": [8]}}, bytes(8)), "tensor w: data_offsets is [8]"),
    "wrong byte count": (
        raw_safetensors({"w": F32 | {"shape": [3]}}, bytes(8)),
        "tensor w: expected 12 bytes for F32 (3,), found 8",
    ),
    "missing key": (
        raw_safetensors({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)),
        "tensor w: expected dtype, shape",
    ),
    "not an entry": (raw_safetensors({"w": 5}, bytes(8)), "tensor w: expected dtype, shape and data_offsets; found 5"),
    "overlap": (
        raw_safetensors({"v": F32, "w": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
        "tensor w overlaps the tensor before it: expected it to begin at byte 8 of the data, found 4",
    ),
    "hole": (
        raw_safetensors({"v": F32, "w": F32 | {"data_offsets": [12, 20]}}, bytes(20)),
        "tensor w leaves a hole before it: expected it to begin at byte 8 of the data, found 12",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_every_truncation_is_noticed(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "model.safetensors"
    save_file(arrays(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(tmp_path)


ONE = {"w": np.zeros(2, np.float32)}
BAD_INDICES: dict[str, tuple[dict[str, dict[str, np.ndarray]], Any, str]] = {
    "absent file": (
        {"a.safetensors": ONE},
        {"w": "a.safetensors", "x": "b.safetensors"},
        "tensor x is in b.safetensors",
    ),
    "absent tensor": ({"a.safetensors": ONE}, {"w": "a.safetensors", "x": "a.safetensors"}, "tensor x is missing"),
    "wrong file": (
        {"a.safetensors": ONE, "b.safetensors": {"x": np.zeros(1, np.float32)}},
        {"w": "b.safetensors", "x": "a.safetensors"},
        "tensor w is said to be in b.safetensors; found it in a.safetensors",
    ),
    "unnamed tensor": (
        {"a.safetensors": ONE | {"x": np.zeros(1, np.float32)}},
        {"w": "a.safetensors"},
        "tensor x is not named by model.safetensors.index.json",
    ),
    "duplicate": (
        {"a.safetensors": ONE | {"x": np.zeros(1, np.float32)}, "b.safetensors": ONE},
        {"w": "b.safetensors", "x": "a.safetensors"},
        "tensor w is also in a.safetensors; expected it once",
    ),
    "outside": ({"a.safetensors": ONE}, {"w": "../a.safetensors"}, "expected the name of a file in this folder"),
    "no map": ({"a.safetensors": ONE}, [], "weight_map is []; expected an object"),
}


@pytest.mark.parametrize("name", BAD_INDICES)
def test_bad_index_is_refused_by_name(tmp_path: Path, name: str) -> None:
    shards, weight_map, message = BAD_INDICES[name]
    write_shards(tmp_path, shards, weight_map)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path)) + ".*" + re.escape(message)):
        open_checkpoint(tmp_path)


def test_corrupt_index_names_file_and_place(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {')
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json: expected JSON.*line 1"):
        open_checkpoint(tmp_path)


def test_two_sets_of_weights_are_refused(tmp_path: Path) -> None:
    write_shards(tmp_path, {"a.safetensors": ONE})
    save_file(ONE, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has both model\.safetensors and model\.safetensors\.index\.json"):
        open_checkpoint(tmp_path)


def test_pickles_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        open_checkpoint(tmp_path)


def test_folder_without_weights_says_what_it_found(tmp_path: Path) -> None:
    save_file(ONE, tmp_path / "consolidated.safetensors")
    with pytest.raises(CheckpointError, match=r"expected model\.safetensors or .*; found \['consolidated"):
        open_checkpoint(tmp_path)


def resident_file_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssFile"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no RssFile in /proc/self/status")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to see resident pages")
def test_drop_gives_pages_back(tmp_path: Path) -> None:
    size = 64 * 1024**2
    save_file({"big": np.ones(size // 4, np.float32), "small": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as source:
        before = resident_file_bytes()
        view = source.read("big")
        assert float(view.sum()) == size // 4
        touched = resident_file_bytes()
        source.drop("big")
        dropped = resident_file_bytes()
    assert touched - before > 0.9 * size
    assert dropped - before < 0.1 * size
