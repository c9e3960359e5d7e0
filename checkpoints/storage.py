"""What a folder holds quantized, and how its keys and values are to be kept: of either kind of folder.

A Hugging Face folder says so in its `quantization_config`. A converted checkpoint of format version 2 has, in
jaxinfer_config.json,

    "storage": {"kv_cache_dtype": null, "matrices": {"layers.0.mlp.down.weight": {"kind": "int4", "group": 128, ...}}}

and its arrays are `PATH.values`, `PATH.scales` and, where there are any, `PATH.zeros` and `PATH.order`, with the shapes
of `pallas_kernels.qtensor.QTensor`. Reading the description needs no weights, and of a converted checkpoint no jax.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from checkpoints.files import CONFIG_FILE, STORAGE_FORMAT_VERSION, CheckpointError, is_converted, read_stored
from jaxinfer.config import ConfigError, ModelConfig, RuntimeConfig, require
from jaxinfer.models.stored_matrix import StoredMatrix, input_sizes, layer_of, matrix_names

KEY = "storage"
KV_CACHE_DTYPES = ("int8", "fp8")
PARTS = ("values", "scales", "zeros", "order")  # of a quantized matrix

_KINDS = ("int8", "int4", "fp8", "mxfp4")
_BLOCK = 32  # of mxfp4
_ACTIVATIONS = (None, "int8", "fp8")


@dataclass(frozen=True)
class Storage:
    """matrices: {path of a parameter: how it is stored}. kv_cache_dtype: the model's default; None: its dtype."""

    matrices: Mapping[str, StoredMatrix] = field(default_factory=dict)
    kv_cache_dtype: str | None = None

    def to_dict(self) -> dict[str, Any]:
        matrices = {path: dataclasses.asdict(matrix) for path, matrix in self.matrices.items()}
        return {"kv_cache_dtype": self.kv_cache_dtype, "matrices": matrices}


def read_storage(folder: Path, config: ModelConfig) -> Storage:
    """How a folder of either kind stores the matrices of `config`. Reads JSON only.

    Raises CheckpointError, naming the file, for a description that is not known.
    """
    if not is_converted(folder):
        from checkpoints.quantized.mapping import read_quantization

        quantized = read_quantization(folder, config)
        return Storage() if quantized is None else Storage(quantized.stored)
    try:
        return parse_storage(read_stored(folder), config)
    except ConfigError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE}: {error}") from error


def with_stored_defaults(folder: Path, config: ModelConfig, runtime: RuntimeConfig) -> RuntimeConfig:
    """`runtime` with what the folder says where the user says nothing: the type of keys and values, if it is auto."""
    stored: Any = read_storage(folder, config).kv_cache_dtype
    if stored is None or runtime.kv_cache_dtype != "auto":
        return runtime
    return dataclasses.replace(runtime, kv_cache_dtype=stored)


def parse_storage(data: Mapping[str, Any], config: ModelConfig) -> Storage:
    """The description in jaxinfer_config.json, `data`. Raises ConfigError naming field, value and what is allowed."""
    if data.get("format_version") != STORAGE_FORMAT_VERSION:
        require(KEY not in data, f"{KEY} is there; it goes with format_version {STORAGE_FORMAT_VERSION}")
        return Storage()
    stored = data.get(KEY)
    require(
        isinstance(stored, dict) and stored.keys() == {"kv_cache_dtype", "matrices"},
        f"{KEY} is {stored!r:.80}; it must be an object of kv_cache_dtype and matrices",
    )
    assert isinstance(stored, dict)
    kv_cache_dtype, matrices = stored["kv_cache_dtype"], stored["matrices"]
    require(
        kv_cache_dtype in (None, *KV_CACHE_DTYPES),
        f"{KEY}.kv_cache_dtype is {kv_cache_dtype!r}; it must be null or one of {', '.join(KV_CACHE_DTYPES)}",
    )
    require(isinstance(matrices, dict), f"{KEY}.matrices is {matrices!r:.80}; it must be an object")
    return Storage(
        MappingProxyType({path: _matrix(path, described, config) for path, described in matrices.items()}),
        kv_cache_dtype,
    )


def _matrix(path: str, described: Any, config: ModelConfig) -> StoredMatrix:
    where = f"{KEY}.matrices[{path!r}]"
    layer = layer_of(path)
    if layer is None or path.removesuffix(".weight") not in set(matrix_names(config)):
        raise ConfigError(f"{where}: there is no such matrix in {config.num_layers} layers")
    known = {one.name for one in dataclasses.fields(StoredMatrix)}
    if not isinstance(described, dict) or described.keys() != known:
        raise ConfigError(f"{where} is {described!r:.120}; it must be an object of {', '.join(sorted(known))}")
    for name, allowed in (
        ("kind", _KINDS), ("activations", _ACTIVATIONS), ("zeros", (True, False)), ("order", (True, False)),
    ):  # fmt: skip
        value = described[name]
        if not any(value is one or (value == one and type(value) is type(one)) for one in allowed):
            raise ConfigError(f"{where}.{name} is {value!r}; it must be one of {list(allowed)}")
    for kind, never in (("fp8", ("zeros",)), ("mxfp4", ("zeros", "order", "activations"))):
        if described["kind"] == kind and (name := next((name for name in never if described[name]), None)):
            must_be = "null" if name == "activations" else "False"
            raise ConfigError(f"{where}.{name} is {described[name]!r}; it must be {must_be} for {kind}")
    group, inputs = described["group"], math.prod(input_sizes(path, config))
    even = 2 if described["kind"] == "int4" else 1
    if described["kind"] == "mxfp4" and (group != _BLOCK or type(group) is not int or inputs % _BLOCK):
        raise ConfigError(f"{where}.group is {group!r}; for mxfp4 it must be {_BLOCK} and divide the {inputs} inputs")
    if group is not None and (type(group) is not int or group < 1 or inputs % group or group % even):
        raise ConfigError(f"{where}.group is {group!r}; it must be null or divide the {inputs} inputs")
    return StoredMatrix(**described)
