"""Parameters on the host: rounding, checksums, blocks, and the layouts for tensor parallelism."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from checkpoints import tensor_assembly as module
from checkpoints.folder import read_config
from checkpoints.load import canonical_shapes, decoder_parameters
from checkpoints.reader import open_checkpoint
from checkpoints.rules import plan_mapping
from checkpoints.tensor_assembly import DTYPES, aligned_empty, assemble, checksum, expand
from jaxinfer.config import ModelConfig
from jaxinfer.models.shape import ModelShape
from jaxinfer.sharding import LogicalAxes
from tests.checkpoints.folders import write_small_llama
from tests.golden_recipe import load_case, write_checkpoint
from tests.jaxinfer.models.layer_changes import change_layers

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    """12 query heads on 2 KV heads, both norms, biases; vocabulary 7 and MLP width 10 do not divide by 4."""
    base, _ = read_config(write_small_llama(tmp_path))
    return change_layers(
        dataclasses.replace(base, vocab_size=7, layers=base.layers[:1]),
        mixer={"num_heads": 12, "num_kv_heads": 2, "qkv_bias": True, "out_bias": True, "qk_norm": "whole"},
        feed_forward={"intermediate_size": 10, "bias": True},
    )


def test_arrays_are_taken_by_jax_without_a_copy() -> None:
    """The converter's memory bound rests on this: device_put on the CPU shares memory that is aligned so."""
    for size in (64, 1000, 1 << 20):
        host = aligned_empty((size,), np.dtype(np.float32))
        assert host.ctypes.data % module.ALIGNMENT == 0
        device = jax.device_put(host, jax.local_devices(backend="cpu")[0])
        assert device.unsafe_buffer_pointer() == host.ctypes.data


@pytest.mark.parametrize("source_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_are_rounded_once_to_even(tmp_path: Path, source_dtype: str, dtype: str) -> None:
    write_checkpoint(load_case("llama"), tmp_path, dtype=source_dtype)
    source_values = load_file(tmp_path / "model.safetensors")
    config, _ = read_config(tmp_path)
    with open_checkpoint(tmp_path) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, DTYPES[dtype]))
        checksums: dict[str, str] = {}
        for path, entries in mapping.targets.items():
            array = assemble(mapping, source, path, DTYPES[dtype], checksums)
            assert array.dtype == DTYPES[dtype]
            for entry in entries:
                expected = np.ascontiguousarray(source_values[entry.source]).astype(np.float32).astype(DTYPES[dtype])
                assert checksums[entry.source] == hashlib.sha256(expected.tobytes()).hexdigest()
                assert checksum(entry, array) == checksums[entry.source]
    assert set(checksums) == set(source_values)


def test_rounding_to_bfloat16_goes_to_even(tmp_path: Path) -> None:
    folder = write_small_llama(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    norm = np.full(32, 1 + 2**-8, np.float32)  # halfway between 1 and the next bfloat16, 1 + 2**-7
    norm[1] = 1 + 3 * 2**-8  # halfway between 1 + 2**-7 and 1 + 2**-6
    save_file(tensors | {"model.norm.weight": norm}, folder / "model.safetensors")
    config, _ = read_config(folder)
    with open_checkpoint(folder) as source:
        mapping = plan_mapping(config, source, canonical_shapes(config, BFLOAT16))
        found = assemble(mapping, source, "final_norm.weight", BFLOAT16).astype(np.float32)
    assert found[0] == 1.0
    assert found[1] == 1 + 2**-6


def test_small_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_checkpoint(load_case("phi3"), tmp_path)
    config, _ = read_config(tmp_path)
    results: list[dict[str, np.ndarray]] = []
    all_checksums: list[dict[str, str]] = []
    for block in (module.BLOCK_BYTES, 1):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
        checksums: dict[str, str] = {}
        with open_checkpoint(tmp_path) as source:
            mapping = plan_mapping(config, source, canonical_shapes(config, BFLOAT16))
            results.append({path: assemble(mapping, source, path, BFLOAT16, checksums) for path in mapping.shapes})
        all_checksums.append(checksums)
    assert all_checksums[0] == all_checksums[1]
    for path, array in results[0].items():
        np.testing.assert_array_equal(array.view(np.uint16), results[1][path].view(np.uint16))


Shapes = dict[str, tuple[int, ...]]


def shapes_for(config: ModelConfig, tp: int) -> tuple[ModelShape, Shapes, dict[str, LogicalAxes]]:
    shape = ModelShape.of(config, tp)
    _, parameters, _ = decoder_parameters(config, shape, np.dtype(np.float32))
    shapes = {path: parameter.shape for path, parameter in parameters.items()}
    return shape, shapes, {path: parameter.facts.axes for path, parameter in parameters.items()}


def numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("tp", [1, 2, 4, 6, 12])
def test_every_head_keeps_its_values_and_its_partners(config: ModelConfig, tp: int) -> None:
    """Query head n is the same rows at any degree, and the KV head that it reads holds its original one's values."""
    _, canonical, axes = shapes_for(config, 1)
    shape, target, _ = shapes_for(config, tp)
    arrays = {path: numbered(size) for path, size in canonical.items()}
    found = {path: expand(arrays[path], target[path], axes[path]) for path in arrays}
    assert {path: array.shape for path, array in found.items()} == target
    attention = "layers.0.attention."
    group, mixer = shape.layers[0].group, config.layers[0].mixer
    original = mixer.group_size
    for n in range(mixer.num_heads):
        new, old = (n // group, n % group), (n // original, n % original)
        for name in ("qkv.weight", "qkv.bias"):
            ours, theirs = found[attention + name], arrays[attention + name]
            np.testing.assert_array_equal(ours[new], theirs[old])
            np.testing.assert_array_equal(ours[new[0], group], theirs[old[0], original])
            np.testing.assert_array_equal(ours[new[0], group + 1], theirs[old[0], original + 1])
        out = attention + "out.weight"
        np.testing.assert_array_equal(found[out][:, new[0], new[1]], arrays[out][:, old[0], old[1]])
        query_norm, key_norm = attention + "q_norm.weight", attention + "k_norm.weight"
        np.testing.assert_array_equal(found[query_norm][new], arrays[query_norm][old])
        np.testing.assert_array_equal(found[key_norm][new[0]], arrays[key_norm][old[0]])


@pytest.mark.parametrize("tp", [2, 4, 12])
def test_padding_is_zeros_at_the_end(config: ModelConfig, tp: int) -> None:
    _, canonical, axes = shapes_for(config, 1)
    _, target, _ = shapes_for(config, tp)
    padded = 0
    for path, size in canonical.items():
        if "attention" in path or target[path] == size:
            continue
        array = numbered(size)
        found = expand(array, target[path], axes[path])
        kept = tuple(slice(0, length) for length in size)
        np.testing.assert_array_equal(found[kept], array)
        assert np.count_nonzero(found) == array.size  # numbered() has no zero of its own
        padded += 1
    assert padded == (2 if tp == 2 else 5)  # 7 rows of the vocabulary always pad, 10 of the MLP do not for 2


def test_nothing_is_copied_where_nothing_changes(config: ModelConfig) -> None:
    _, canonical, axes = shapes_for(config, 1)
    for path, size in canonical.items():
        array = numbered(size)
        assert expand(array, size, axes[path]) is array
