"""Weights from disk into the devices: a plain Hugging Face folder is streamed, a converted checkpoint restored.

Both end in the same arrays, bit for bit, each placed by its logical axes and by nothing else. Disk and host know one
layout, that of one device. For a tensor-parallel degree that changes shapes (repeated KV heads, padded vocabulary or
MLP width) a parameter passes through host memory, one at a time; all others of a converted checkpoint are read by
Orbax straight into their sharding. Matrices that a quantized checkpoint stores quantized stay so all the way.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from checkpoints.end_tokens import served_end_tokens
from checkpoints.files import CheckpointError, is_converted
from checkpoints.folder import read_config as read_config
from checkpoints.quantized.mapping import Quantization, plan_quantized, read_quantization
from checkpoints.quantized.matrix_assembly import check_no_biases, read_matrix
from checkpoints.reader import open_checkpoint
from checkpoints.rules import plan_mapping
from checkpoints.storage import read_storage
from checkpoints.tensor_assembly import DTYPES, assemble, check_tied_head, expand
from jaxinfer.config import ConfigError, ModelConfig
from jaxinfer.models.decoder import abstract_decoder
from jaxinfer.models.model import Model
from jaxinfer.models.parameters import ParameterFacts, facts_of, parameter_dtype
from jaxinfer.models.shape import ModelShape
from jaxinfer.models.stored_matrix import StoredMatrix, check_stored, input_axes
from jaxinfer.quantization import (
    SCHEMES,
    MatrixPlacing,
    MatrixRounding,
    Scheme,
    placing_of,
    rounding_of,
    stored_parts,
)
from jaxinfer.sharding import MESH_AXES, make_mesh, named_sharding, tensor_size
from pallas_kernels.qtensor import QTensor, scales_are_finite

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, the parameter that has just arrived


@dataclass(frozen=True)
class Parameter:
    """One parameter of the decoder: its place in the NNX state, its shape in elements, what it says of itself."""

    key: tuple[Any, ...]  # str and int parts
    shape: tuple[int, ...]
    facts: ParameterFacts


def decoder_parameters(
    config: ModelConfig, shape: ModelShape, dtype: np.dtype
) -> tuple[nnx.GraphDef, dict[str, Parameter], nnx.State]:
    """The decoder's graphdef, its parameters by dotted path, and its abstract state. Makes no arrays."""
    graphdef, state = abstract_decoder(config, shape, dtype)
    parameters = {
        ".".join(map(str, key)): Parameter(key, tuple(leaf.get_value().shape), facts_of(leaf))
        for key, leaf in nnx.to_flat_state(state)
    }
    return graphdef, parameters, state


def canonical_shapes(config: ModelConfig, dtype: np.dtype) -> dict[str, tuple[int, ...]]:
    """{dotted path: shape} on one device: the layout that checkpoints are stored in."""
    _, parameters, _ = decoder_parameters(config, ModelShape.canonical(config), dtype)
    return {path: parameter.shape for path, parameter in parameters.items()}


def canonical_parts(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, StoredMatrix]) -> dict[str, QTensor]:
    """{path: shapes of the parts} of quantized matrices, as a converted checkpoint has them. shapes: canonical."""
    found = {}
    for path, matrix in stored.items():
        inputs = input_axes(path)
        assert inputs is not None
        found[path] = stored_parts(shapes[path][:-inputs], math.prod(shapes[path][-inputs:]), matrix)
    return found


def check_finite(folder: Path, path: str, matrix: QTensor) -> QTensor:
    """Raises CheckpointError, naming the parameter, if the scales of a matrix are not finite."""
    if not scales_are_finite(matrix):
        raise CheckpointError(f"{folder}: parameter {path} holds values that are not finite; it has no scale")
    return matrix


def load_model(
    folder: str | Path,
    *,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    mesh: Mesh | None = None,
    quantization: str | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a Hugging Face folder or a converted checkpoint.

    dtype: of the parameters; "auto" takes the checkpoint's. mesh: of `jaxinfer.sharding`; None: JAX's first device.
    quantization: a scheme of `jaxinfer.quantization`; each matrix is rounded on its device as soon as it is there. It
    must be None for a checkpoint that is quantized already.

    Raises:
        CheckpointError: the folder cannot be used (file, tensor, expected and found are named).
        ConfigError: the mesh has other axes, the model cannot be split that way (valid degrees are listed), or dtype
            or quantization is unknown or not possible, or a matrix cannot be cut into groups.
    """
    folder = Path(folder)
    config, _ = read_config(folder)
    end_tokens, notes = served_end_tokens(folder, config)
    config = dataclasses.replace(config, eos_token_ids=end_tokens)
    if is_converted(folder):
        stored = read_storage(folder, config).matrices
        loaded = _load(_restore, folder, config, dtype, mesh, progress, quantization, stored)
    else:
        quantized = read_quantization(folder, config)
        stored = {} if quantized is None else quantized.stored
        read = partial(_stream, quantized=quantized)
        loaded = _load(read, folder, config, dtype, mesh, progress, quantization, stored)
    return dataclasses.replace(loaded, notes=notes)


def load_unfinished(folder: Path, config: ModelConfig) -> Model:
    """A converted checkpoint whose report is not written yet, in its own dtype on one device: for its verification."""
    return _load(_restore, folder, config, "auto", None, None, None, {})


def _scheme(name: str | None) -> Scheme | None:
    if name is not None and name not in SCHEMES:
        raise ConfigError(f"quantization is {name!r}; it must be one of {', '.join(SCHEMES)}, or None")
    return None if name is None else SCHEMES[name]


def _load(
    read: Callable[[_Request], dict[str, Any]],
    folder: Path,
    config: ModelConfig,
    dtype: str,
    mesh: Mesh | None,
    progress: Progress | None,
    quantization: str | None,
    stored: Mapping[str, StoredMatrix],
) -> Model:
    scheme = _scheme(quantization)
    chosen = config.dtype if dtype == "auto" else dtype
    if chosen not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; it must be auto or one of {', '.join(DTYPES)}")
    mesh = make_mesh() if mesh is None else mesh
    if mesh.axis_names != MESH_AXES:
        raise ConfigError(f"mesh axes are {mesh.axis_names}; expected {MESH_AXES}")
    shape = ModelShape.of(config, tensor_size(mesh))
    check_stored(stored, quantization, config, shape)
    graphdef, parameters, state = decoder_parameters(config, shape, DTYPES[chosen])
    arrays = read(_Request(folder, config, shape, DTYPES[chosen], mesh, parameters, progress, scheme, stored))
    loaded = [(key, leaf.replace(arrays[".".join(map(str, key))])) for key, leaf in nnx.to_flat_state(state)]
    params = nnx.to_pure_dict(nnx.from_flat_state(loaded))
    return Model(folder.name, config, shape, chosen, graphdef, params)


class _Request:
    """What is to be loaded, and how far it has come."""

    def __init__(
        self,
        folder: Path,
        config: ModelConfig,
        shape: ModelShape,
        dtype: np.dtype,
        mesh: Mesh,
        parameters: dict[str, Parameter],
        progress: Progress | None,
        scheme: Scheme | None,
        stored: Mapping[str, StoredMatrix],
    ) -> None:
        self.stored = stored
        self.folder, self.config, self.shape, self.dtype = folder, config, shape, dtype
        self.parameters = parameters
        if shape == ModelShape.canonical(config):
            self.canonical = {path: parameter.shape for path, parameter in parameters.items()}
        else:
            self.canonical = canonical_shapes(config, dtype)
        self._mesh = mesh
        self._roundings = {} if scheme is None else self._plan_roundings(scheme)
        self._placings = self._plan_placings()
        self._progress = progress
        self._total = sum(self._bytes(path) for path in parameters)
        self._done = 0

    def _plan_roundings(self, scheme: Scheme) -> dict[str, MatrixRounding]:
        """For all parameters before the first is read, so that one that cannot be rounded costs nothing."""
        planned = {
            path: rounding_of(path, parameter, parameter.facts, scheme, self._mesh)
            for path, parameter in self.parameters.items()
        }
        return {path: rounding for path, rounding in planned.items() if rounding is not None}

    def _plan_placings(self) -> dict[str, MatrixPlacing]:
        planned = {}
        for path, stored in self.stored.items():
            parameter = self.parameters[path]
            planned[path] = placing_of(path, parameter.shape, parameter.facts, stored, self._mesh)
        return planned

    @property
    def rounded(self) -> frozenset[str]:
        """Parameters that are quantized."""
        return frozenset(self._roundings)

    def finish(self, path: str, array: jax.Array) -> jax.Array | QTensor:
        """Rounds a parameter that lies on its devices, if it is one to be rounded. Raises CheckpointError for NaN."""
        if path not in self._roundings:
            return array
        return check_finite(self.folder, path, self._roundings[path].apply(array))

    def sharding(self, path: str) -> NamedSharding:
        return named_sharding(self._mesh, self.parameters[path].facts.axes)

    def place(self, path: str, canonical: np.ndarray) -> jax.Array | QTensor:
        """Lay a parameter out for the mesh, move it there, and wait: so the host never holds two."""
        target = self.parameters[path].shape
        host = expand(canonical, target, self.parameters[path].facts.axes)
        array = jax.make_array_from_callback(target, self.sharding(path), lambda index: host[index])
        return jax.block_until_ready(self.finish(path, array))

    def place_stored(self, path: str, canonical: QTensor) -> QTensor:
        """The same for a quantized matrix: KV heads repeated (all else has its size), placed, kept for the device."""
        placing, axes = self._placings[path], self.parameters[path].facts.axes

        def lay_out(host: np.ndarray, like: jax.ShapeDtypeStruct) -> np.ndarray:
            return expand(host, like.shape, axes)

        return jax.block_until_ready(placing.apply(jax.tree.map(lay_out, canonical, placing.as_stored)))

    def report(self, *paths: str) -> None:
        self._done += sum(self._bytes(path) for path in paths)
        if self._progress is not None:
            self._progress(self._done, self._total, paths[-1])

    def _bytes(self, path: str) -> int:
        if path in self._placings:
            return self._placings[path].as_stored.nbytes
        return int(np.prod(self.canonical[path])) * parameter_dtype(path, self.dtype).itemsize


def _stream(request: _Request, quantized: Quantization | None) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    with open_checkpoint(request.folder) as source:
        planned, taken, plain = None, frozenset[str](), request.canonical
        if quantized is not None:
            planned = plan_quantized(request.config, source, request.canonical, quantized)
            taken = planned.taken
            plain = {path: shape for path, shape in plain.items() if path not in planned.matrices}
        mapping = plan_mapping(request.config, source, plain, taken)
        check_tied_head(mapping, source)
        if planned is not None:
            check_no_biases(planned, source)
        for path in request.parameters:
            if planned is not None and path in planned.matrices:
                arrays[path] = request.place_stored(path, read_matrix(planned.matrices[path], planned.format))
            else:
                dtype = parameter_dtype(path, request.dtype)
                arrays[path] = request.place(path, assemble(mapping, source, path, dtype))
            request.report(path)
    return arrays


def _restore(request: _Request) -> dict[str, Any]:
    from checkpoints.store import StoredParams  # brings Orbax, which no other kind of folder needs

    plain = {path: shape for path, shape in request.canonical.items() if path not in request.stored}
    matrices = canonical_parts(request.canonical, request.stored)
    stored = StoredParams(request.folder, plain, DTYPES[request.config.dtype], matrices)
    # What is rounded comes one by one: no more than one wide matrix is on a device.
    unchanged = [
        path
        for path in request.parameters
        if request.parameters[path].shape == request.canonical[path]
        and path not in request.rounded
        and path not in matrices
    ]
    arrays: dict[str, Any] = stored.restore(
        {path: request.sharding(path) for path in unchanged}, request.dtype, lambda group: request.report(*group)
    )
    for path in request.parameters.keys() - arrays.keys():
        if path in matrices:
            arrays[path] = request.place_stored(path, check_finite(request.folder, path, stored.read_matrix(path)))
        else:
            arrays[path] = request.place(path, stored.read(path, parameter_dtype(path, request.dtype)))
        request.report(path)
    return arrays
