"""Tensors of the open inference protocol as plain Python, in both of its encodings.

contents: typed fields beside each tensor. raw: bytes in a list of their own, little-endian; an element of BYTES is its
length in four bytes and then itself.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxinfer.errors import InvalidRequest
from protos.open_inference import grpc_service_pb2 as pb

SIZE = "binary_data_size"  # parameter of an input: bytes of its raw form
ANY = -1  # a dimension of any length
VECTOR, SCALAR = (ANY,), (1,)


class TensorSpec(NamedTuple):
    """A tensor of the model. datatypes: the first is what the model's metadata say."""

    name: str
    datatypes: tuple[str, ...]
    shape: tuple[int, ...] = SCALAR


# Datatype -> the field of InferTensorContents, and struct's letter for the raw form.
_FIELDS: Mapping[str, tuple[str, str | None]] = {
    "BOOL": ("bool_contents", "B"),
    "INT32": ("int_contents", "i"),
    "INT64": ("int64_contents", "q"),
    "UINT32": ("uint_contents", "I"),
    "FP32": ("fp32_contents", "f"),
    "BYTES": ("bytes_contents", None),
}


def read(request: pb.ModelInferRequest, specs: Mapping[str, TensorSpec]) -> dict[str, Sequence[Any]]:
    """Values of each input by name, flat; of a long one no Python objects are made yet. Raises InvalidRequest for what
    is not one of `specs`, or malformed."""
    raw = _raw(request)
    found: dict[str, Sequence[Any]] = {}
    for i, tensor in enumerate(request.inputs):
        if tensor.name not in specs:
            raise InvalidRequest(f"inputs[{i}].name", tensor.name, f"the inputs are {sorted(specs)}")
        if tensor.name in found:
            raise InvalidRequest(f"inputs[{i}].name", tensor.name, "an input must not come twice")
        data = raw[i]
        _check_parameters(tensor, data)
        count = _count(tensor, specs[tensor.name])
        found[tensor.name] = _contents(tensor, count) if data is None else _unpack(tensor, data, count)
    return found


def _raw(request: pb.ModelInferRequest) -> list[bytes | None]:
    """The raw form of each input. An input may have typed contents beside others that are raw, as KServe's client sends
    them: the entries belong to those without contents, in order. Raises InvalidRequest."""
    entries, typed = request.raw_input_contents, [tensor.HasField("contents") for tensor in request.inputs]
    if not entries:
        return [None] * len(typed)
    if len(entries) == len(typed) and any(typed):
        name = request.inputs[typed.index(True)].name
        raise InvalidRequest(f"{name}.contents", "set", "it must be unset where raw_input_contents has the input")
    if len(entries) != typed.count(False):
        allowed = f"it must hold one entry for each of the {typed.count(False)} inputs without contents, or none"
        raise InvalidRequest("raw_input_contents", f"{len(entries)} entries", allowed)
    left = iter(entries)
    return [None if has_contents else next(left) for has_contents in typed]


def _check_parameters(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes | None) -> None:
    """KServe's client tells the length of the raw form, as it must over HTTP. Raises InvalidRequest."""
    for name, parameter in sorted(tensor.parameters.items()):
        at = f"{tensor.name}.parameters[{name}]"
        if name != SIZE:
            raise InvalidRequest(f"{tensor.name}.parameters", name, f"only {SIZE} is one; there is no shared memory")
        kind = parameter.WhichOneof("parameter_choice")
        size = None if kind is None else getattr(parameter, kind)
        if isinstance(size, bool) or not isinstance(size, int):
            raise InvalidRequest(at, size, "it must be an integer")
        if data is None:
            raise InvalidRequest(at, size, "it belongs to an input in raw_input_contents, and this one has contents")
        if size != len(data):
            raise InvalidRequest(at, size, f"its raw form has {len(data)} bytes")


def _count(tensor: pb.ModelInferRequest.InferInputTensor, spec: TensorSpec) -> int:
    """How many values the tensor must hold."""
    if tensor.datatype not in spec.datatypes:
        raise InvalidRequest(f"{tensor.name}.datatype", tensor.datatype, f"it must be {' or '.join(spec.datatypes)}")
    shape = list(tensor.shape)
    fits = len(shape) == len(spec.shape) and all(
        w in (ANY, d) and d >= 0 for w, d in zip(spec.shape, shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(f"{tensor.name}.shape", shape, f"it must be {list(spec.shape)} ({ANY}: any length)")
    return int(shape[0])


def _check_count(tensor: pb.ModelInferRequest.InferInputTensor, found: int, count: int) -> None:
    if found != count:
        raise InvalidRequest(tensor.name, f"{found} values", f"shape {list(tensor.shape)} holds {count}")


def _contents(tensor: pb.ModelInferRequest.InferInputTensor, count: int) -> Sequence[Any]:
    wanted = _FIELDS[tensor.datatype][0]
    for field, _ in tensor.contents.ListFields():
        if field.name != wanted:
            raise InvalidRequest(f"{tensor.name}.contents", field.name, f"{tensor.datatype} is in {wanted}")
    values = getattr(tensor.contents, wanted)
    _check_count(tensor, len(values), count)
    found: Sequence[Any] = values
    return found


def _unpack(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes, count: int) -> Sequence[Any]:
    kind = _FIELDS[tensor.datatype][1]
    if kind is None:
        strings = _strings(tensor.name, data, count)
        _check_count(tensor, len(strings), count)
        return strings
    size = struct.calcsize(f"<{kind}")
    if len(data) % size:
        allowed = f"{tensor.datatype} takes {size} bytes a value"
        raise InvalidRequest(f"raw_input_contents of {tensor.name}", f"{len(data)} bytes", allowed)
    _check_count(tensor, len(data) // size, count)
    if tensor.datatype == "BOOL":
        return [bool(value) for value in data]
    values = array(kind)
    assert values.itemsize == size, "the interpreter's machine type has another size"
    values.frombytes(data)
    if sys.byteorder == "big":
        values.byteswap()
    return values


def _strings(name: str, data: bytes, most: int) -> list[bytes]:
    """The first of them, up to one more than `most`."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) <= most:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        if at + 4 > len(data) or end > len(data):
            allowed = "each element must be its length in four bytes, little-endian, and then itself"
            raise InvalidRequest(f"raw_input_contents of {name}", f"{len(data)} bytes", allowed)
        found.append(data[at + 4 : end])
        at = end
    return found


def add(response: pb.ModelInferResponse, spec: TensorSpec, values: Sequence[Any], *, raw: bool) -> None:
    """Adds an output. values: str for BYTES, else numbers."""
    datatype = spec.datatypes[0]
    tensor = response.outputs.add(name=spec.name, datatype=datatype, shape=[len(values)])
    field, kind = _FIELDS[datatype]
    plain: Iterable[Any] = [value.encode() for value in values] if kind is None else values
    if not raw:
        getattr(tensor.contents, field).extend(plain)
    elif kind is None:
        response.raw_output_contents.append(b"".join(len(value).to_bytes(4, "little") + value for value in plain))
    else:
        response.raw_output_contents.append(struct.pack(f"<{len(values)}{kind}", *values))
