"""Folders that other programs write and read, from the reports beside this file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from checkpoints.files import CheckpointError
from checkpoints.folder import read_config
from checkpoints.quantized import parse
from checkpoints.reader import open_checkpoint
from checkpoints.storage import read_storage
from jaxinfer.config import ConfigError
from tests.checkpoints.folders import edit_json, write_small_llama
from tests.checkpoints.quantized.models import Pair
from tests.checkpoints.quantized.test_formats import CASES, read_all, write, write_once

REPORTS = Path(__file__).parent / "reports"


def report(name: str) -> Any:
    return json.loads((REPORTS / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    return write_once(tmp_path_factory)


def test_gptqmodel_names_the_method_twice() -> None:
    settings = report("f09a.quantization_config.json")
    assert report("f09a.expect.json")["read_as"].startswith("the same without the key method")
    once = {key: value for key, value in settings.items() if key != "method"}
    assert parse(settings) == parse(once)
    with pytest.raises(ConfigError, match="method is 'awq'; it must be the same as quant_method, 'gptq'"):
        parse(settings | {"method": "awq"})


def test_an_index_beside_one_file_loads(tmp_path: Path) -> None:
    """As mlx-lm writes it: every tensor is in model.safetensors, and so says the index."""
    described = report("f12.json")
    folder = write_small_llama(tmp_path / "mlx")
    names = list(load_file(folder / "model.safetensors"))
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert {path.name for path in folder.iterdir()} >= set(described["folder"])
    read_config(folder)
    with open_checkpoint(folder) as source:
        assert set(source.names) == set(names)


def test_quantize_config_is_read_as_gptq(tmp_path: Path, pairs: Callable[[str], Pair]) -> None:
    """The file of AutoGPTQ, which names no method and stands beside a config.json that says nothing."""
    described = report("f13a.json")
    settings = described["quantize_config"]
    case = CASES["gptq-64"]
    assert (settings["bits"], settings["group_size"]) == (case.settings["bits"], case.settings["group_size"])
    folder = write(tmp_path, case).quantized
    edit_json(folder / "config.json", quantization_config=...)
    (folder / "quantize_config.json").write_text(json.dumps(settings))
    modern = pairs("gptq-64").quantized
    stored = read_storage(folder, read_config(folder)[0]).matrices
    assert stored == read_storage(modern, read_config(modern)[0]).matrices
    assert {matrix.kind for matrix in stored.values()} == {"int4"}, "planned as a dense model"
    old, new = read_all(folder), read_all(modern)
    assert old.keys() == new.keys()
    for path in old:
        np.testing.assert_array_equal(old[path].values, new[path].values)
        np.testing.assert_array_equal(old[path].scales, new[path].scales)


def test_quantized_tensors_that_no_file_describes_are_refused_before_planning(tmp_path: Path) -> None:
    folder = write(tmp_path, CASES["gptq-64"]).quantized
    edit_json(folder / "config.json", quantization_config=...)
    with pytest.raises(CheckpointError, match=r"q_proj\.qweight|\.qweight is of a quantized layer \(GPTQ or AWQ\)"):
        read_config(folder)
