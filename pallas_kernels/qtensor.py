"""QTensor: a quantized matrix of weights, as a leaf type that stands where an array of the model would.

Legend: *O output axes, I inputs (all input axes of the weight as one), A groups of I, g = I // A.

    weight[o, i] = (q[o, i] - zero[o, i // g]) * scale[o, i // g]

Every published format comes down to this: a scale for each output is A = 1; groups of 32, 64 or 128 inputs are A = I/g;
128 x 128 blocks are groups of 128 whose scales 128 outputs share, written out for each output. MXFP4 (`mxfp4.py`) has
g = 32, no zero points, and scales that are powers of two, of which a byte holds the exponent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import mxfp4
from pallas_kernels.dispatch import DeviceTarget

Kind = Literal["int8", "int4", "fp8", "mxfp4"]
Activations = Literal["int8", "fp8"]

FP8 = np.dtype(jnp.float8_e4m3fn)
STORAGE: dict[str, np.dtype] = {
    "int8": np.dtype(np.int8),
    "int4": np.dtype(np.uint8),
    "fp8": FP8,
    "mxfp4": np.dtype(np.uint8),
}
FOUR_BITS = frozenset({"int4", "mxfp4"})  # kinds of which a byte holds two numbers
# The largest magnitude that a symmetric number of the kind holds. int4 leaves -8 unused, so that 0 lies in the middle.
LARGEST: dict[str, float] = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
# What zero points are stored in: they are numbers of the same range.
ZEROS: dict[str, np.dtype] = {"int8": np.dtype(np.int8), "int4": np.dtype(np.uint8)}
# Kinds with one size of group.
FIXED_GROUPS: dict[str, int] = {"mxfp4": mxfp4.BLOCK}
INT4_MIDDLE = 8  # int4 is stored as 0..15; without zero points 8 means 0
NUMBERS_OF_A_WORD = 8
BLOCK_OF_WORDS = 64  # inputs that 8 rows of words hold


def scales_dtype(kind: str) -> np.dtype:
    """What a kind's scales are stored in: MXFP4's are exponents of two."""
    return np.dtype(np.uint8 if kind == "mxfp4" else np.float32)


def stored_inputs(kind: str, inputs: int) -> int:
    """The last axis of `values` as checkpoints have them, for so many inputs."""
    return inputs // 2 if kind in FOUR_BITS else inputs


def group_unit(kind: str) -> int:
    """What the number of inputs of every group is a multiple of."""
    return FIXED_GROUPS.get(kind, 2 if kind in FOUR_BITS else 1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QTensor:
    """A weight (*O, I) in 8 or 4 bits.

    Invariants: `values` is (*O, I), or (*O, I // 2) bytes for int4 and mxfp4, where a byte holds input 2j in its low
    half and 2j + 1 in its high half; `scales` and `zeros` are (*O, A) and A divides I; an int4 group has an even number
    of inputs, one of mxfp4 has 32. The output axes are those of the weight, so that they can be sharded alike; the
    input axes are one.

    A TPU keeps them in one of two other forms. In JAX's own type: (*O, I), int4 less 8 and the bits of mxfp4 as they
    are. Or int4 as words, where `packed_outputs`
    is not
    None: with O = (*L, first, *packed_outputs) and N the product of first and `packed_outputs`, `values` is (*L, I //
    8, N) int32 as `pack_int4_along_inputs` lays it out, `scales` and `zeros` are (*L, A, N), and I is a multiple of 64.
    The first of the axes that are one there is the one that may be split over devices, inputs may be split between
    groups.

    Attributes:
        values: int8, float8_e4m3fn, uint8 pairs of int4 or of mxfp4, JAX's int4, or int32 words of eight int4.
        scales: float32; for mxfp4 uint8, where e stands for 2^(e - 127), and 255 for NaN.
        zeros: uint8 for int4, int8 for int8: the numbers that `q` is measured from; None: 0, and 8 for int4.
        order: (I,) int32: input i of `values` is input order[i] of the activations (GPTQ's act-order); None: as it is.
        kind: what `values` holds.
        activations: round activations to this type, with a scale for each token, before the product; None: keep them.
        target: the kind of device that it is kept for, which decides who multiplies by it; None before it is placed.
        packed_outputs: packed form only: the output axes behind the one that may be split; they are one with it.
    """

    values: jax.Array
    scales: jax.Array
    zeros: jax.Array | None = None
    order: jax.Array | None = None
    kind: Kind = dataclasses.field(default="int8", metadata={"static": True})
    activations: Activations | None = dataclasses.field(default=None, metadata={"static": True})
    target: DeviceTarget | None = dataclasses.field(default=None, metadata={"static": True})
    packed_outputs: tuple[int, ...] | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def outputs(self) -> tuple[int, ...]:
        """*O."""
        if self.packed_outputs is None:
            return tuple(self.values.shape[:-1])
        return (*self.values.shape[:-2], self.values.shape[-1] // math.prod(self.packed_outputs), *self.packed_outputs)

    @property
    def inputs(self) -> int:
        """I."""
        if self.packed_outputs is not None:
            return self.values.shape[-2] * NUMBERS_OF_A_WORD
        return self.values.shape[-1] * (2 if self.kind in FOUR_BITS and self.values.dtype == jnp.uint8 else 1)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*O, I)."""
        return (*self.outputs, self.inputs)

    @property
    def groups(self) -> int:
        """A."""
        return self.scales.shape[-1 if self.packed_outputs is None else -2]

    @property
    def group(self) -> int:
        """g: inputs that share a scale."""
        return self.inputs // self.groups

    def axes_of_parts(self, axes: Sequence[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """What the axes (*O, I) of the weight have, for the axes of `values`, and for those of `scales` and `zeros`."""
        *outputs, inputs = axes
        groups = inputs if self.groups > 1 else None
        if self.packed_outputs is None:
            return (*outputs, inputs), (*outputs, groups)
        first = len(outputs) - len(self.packed_outputs) - 1
        return (*outputs[:first], inputs, outputs[first]), (*outputs[:first], groups, outputs[first])

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = (self.values, self.scales, self.zeros, self.order)
        return sum(array.size * array.dtype.itemsize for array in arrays if array is not None)

    def check(self, name: str = "weight") -> None:
        """Raises ValueError, naming `name` and what is wrong, if the arrays do not fit together."""
        if self.kind not in STORAGE:
            raise ValueError(f"{name} is {self.kind!r}; it must be one of {', '.join(STORAGE)}")
        words = self.packed_outputs is not None
        stored = np.dtype(np.int32) if words else STORAGE[self.kind]
        if words and self.kind != "int4":
            raise ValueError(f"{name} is {self.kind!r}; as words it must be 'int4'")
        if self.packed_outputs is not None and self.values.shape[-1] % math.prod(self.packed_outputs):
            raise ValueError(
                f"{name}.packed_outputs is {self.packed_outputs}; "
                f"it must divide the {self.values.shape[-1]} outputs in the last axis"
            )
        on_tpu = self.kind in FOUR_BITS and self.values.dtype == jnp.int4 and not words
        if self.values.dtype != stored and not on_tpu:
            raise ValueError(
                f"{name}.values is {self.values.dtype}; {self.kind} is stored as {stored.name}{' words' * words}"
            )
        if self.zeros is not None and self.zeros.dtype != ZEROS.get(self.kind):
            allowed = f"stored as {ZEROS[self.kind].name}" if self.kind in ZEROS else "None"
            raise ValueError(f"{name}.zeros is {self.zeros.dtype}; for {self.kind} it must be {allowed}")
        if self.scales.dtype != scales_dtype(self.kind):
            raise ValueError(
                f"{name}.scales is {self.scales.dtype}; for {self.kind} it must be {scales_dtype(self.kind).name}"
            )
        groups = self.groups
        shape = (*self.outputs, groups)
        if words:
            shape = (*self.values.shape[:-2], groups, self.values.shape[-1])
        for part, array in (("scales", self.scales), ("zeros", self.zeros)):
            if array is not None and tuple(array.shape) != shape:
                raise ValueError(f"{name}.{part} has shape {array.shape}; it must be {shape}")
        if groups < 1 or self.inputs % groups or self.group % (2 if self.kind in FOUR_BITS else 1):
            raise ValueError(f"{name} has {groups} groups; they must divide its {self.inputs} inputs into equal parts")
        fixed = FIXED_GROUPS.get(self.kind, self.group)
        if self.group != fixed:
            raise ValueError(f"{name} has groups of {self.group} inputs; those of {self.kind} must have {fixed}")
        if self.kind == "mxfp4" and (self.order is not None or self.activations is not None):
            raise ValueError(f"{name} is mxfp4 with an order of inputs or rounded activations; it must have neither")
        if self.order is not None and tuple(self.order.shape) != (self.inputs,):
            raise ValueError(f"{name}.order has shape {self.order.shape}; it must be {(self.inputs,)}")


def quantize(
    weight: jax.Array, kind: Kind, group: int | None = None, *, activations: Activations | None = None
) -> QTensor:
    """A weight (*O, I) rounded to nearest. The largest magnitude of a group becomes the largest number of the kind.

    mxfp4 has scales of its own (`mxfp4.encode`): powers of two.

    Can be jitted, so it does not look at values: where the weight is not finite the scales are not either.

    Args:
        group: inputs that share a scale; None: all of them, and 32 for mxfp4.

    Raises:
        ValueError: `group` does not divide I, or the kind has no such groups.
    """
    outputs, inputs = weight.shape[:-1], weight.shape[-1]
    group = FIXED_GROUPS.get(kind, inputs) if group is None else group
    if group < 1 or inputs % group or (kind == "int4" and group % 2):
        raise ValueError(f"group is {group}; it must divide the {inputs} inputs" + " and be even" * (kind == "int4"))
    if group != FIXED_GROUPS.get(kind, group):
        raise ValueError(f"group is {group}; for {kind} it must be {FIXED_GROUPS[kind]}")
    wide = jnp.asarray(weight, jnp.float32).reshape(*outputs, inputs // group, group)
    if kind == "mxfp4":
        codes, exponents = mxfp4.encode(wide)
        return QTensor(pack_int4(codes.reshape(*outputs, inputs)), exponents, kind=kind, activations=activations)
    largest = jnp.max(jnp.abs(wide), axis=-1)
    # Multiplied, as XLA does with a constant divisor in some places and not in others.
    scales = largest * np.float32(1 / LARGEST[kind])
    # A scale that is 0, or so small that it has no inverse, stores zeros.
    inverse = jnp.where(scales >= np.finfo(np.float32).tiny, 1.0 / jnp.maximum(scales, np.finfo(np.float32).tiny), 0.0)
    scaled = jnp.clip(wide * inverse[..., None], -LARGEST[kind], LARGEST[kind]).reshape(*outputs, inputs)
    values = scaled.astype(FP8) if kind == "fp8" else jnp.round(scaled).astype(jnp.int8)
    if kind == "int4":
        values = pack_int4(values.astype(jnp.int32) + INT4_MIDDLE)
    return QTensor(values, scales, kind=kind, activations=activations)


def pack_int4(numbers: jax.Array) -> jax.Array:
    """Numbers 0..15 (..., I) as bytes (..., I // 2), the even input in the low half."""
    pairs = numbers.astype(jnp.uint8).reshape(*numbers.shape[:-1], -1, 2)
    return pairs[..., 0] | (pairs[..., 1] << 4)


def unpack_int4(packed: jax.Array) -> jax.Array:
    """Bytes (..., I // 2) as numbers 0..15 (..., I) int8."""
    halves = jnp.stack([packed & 15, packed >> 4], axis=-1).astype(jnp.int8)
    return halves.reshape(*packed.shape[:-1], -1)


def pack_int4_along_inputs(numbers: jax.Array) -> jax.Array:
    """Numbers 0..15 (..., I, N) as int32 words (..., I // 8, N); I is a multiple of 64.

    Bits 16 h + 4 s of word r in a block of 64 inputs hold input 16 s + 2 r + h of it. One shift for each s
    then leaves 16 inputs in the low and high halves of 8 words, in the order that 16-bit numbers have on a TPU.
    """
    *leading, inputs, outputs = numbers.shape
    blocks = numbers.astype(jnp.uint32).reshape(*leading, inputs // BLOCK_OF_WORDS, 4, 8, 2, outputs)
    shifts = (4 * jnp.arange(4, dtype=jnp.uint32)[:, None, None] + 16 * jnp.arange(2, dtype=jnp.uint32))[..., None]
    words = jnp.sum(blocks << shifts, axis=(-4, -2), dtype=jnp.uint32)
    return jax.lax.bitcast_convert_type(words, jnp.int32).reshape(*leading, inputs // NUMBERS_OF_A_WORD, outputs)


def unpack_int4_along_inputs(words: jax.Array) -> jax.Array:
    """The inverse of `pack_int4_along_inputs`: numbers 0..15 (..., I, N) int8."""
    *leading, rows, outputs = words.shape
    blocks = words.reshape(*leading, rows // 8, 1, 8, 1, outputs)
    shifts = (4 * jnp.arange(4)[:, None, None] + 16 * jnp.arange(2))[..., None]
    return ((blocks >> shifts) & 15).astype(jnp.int8).reshape(*leading, rows * NUMBERS_OF_A_WORD, outputs)


def to_words(weight: QTensor, first: int = 0) -> QTensor:
    """A weight in pairs of int4 as words; its output axes from `first` on become one. The inverse of `from_words`."""
    leading, packed_outputs = weight.outputs[:first], weight.outputs[first + 1 :]

    def across(part: jax.Array) -> jax.Array:
        return jnp.swapaxes(part.reshape(*leading, -1, part.shape[-1]), -1, -2)

    return dataclasses.replace(
        weight,
        values=pack_int4_along_inputs(across(unpack_int4(weight.values))),
        scales=across(weight.scales),
        zeros=None if weight.zeros is None else across(weight.zeros),
        packed_outputs=packed_outputs,
    )


def from_words(weight: QTensor) -> QTensor:
    """A weight that lies as words, in pairs of int4 (*O, I // 2), with scales and zero points (*O, A)."""
    assert weight.packed_outputs is not None

    def behind(part: jax.Array) -> jax.Array:
        return jnp.swapaxes(part, -1, -2).reshape(*weight.outputs, -1)

    return dataclasses.replace(
        weight,
        values=pack_int4(behind(unpack_int4_along_inputs(weight.values))),
        scales=behind(weight.scales),
        zeros=None if weight.zeros is None else behind(weight.zeros),
        packed_outputs=None,
    )


def dequantize(weight: QTensor) -> jax.Array:
    """The weight (*O, I) in float32, its inputs in the order of the activations."""
    if weight.kind == "mxfp4":
        return widen_mxfp4(weight.values, weight.scales).astype(jnp.float32)
    if weight.packed_outputs is not None:
        weight = from_words(weight)
    numbers = weight.values
    if weight.kind == "int4":
        numbers = unpack_int4(numbers) if numbers.dtype == jnp.uint8 else numbers.astype(jnp.int8) + INT4_MIDDLE
    wide = numbers.astype(jnp.float32).reshape(*weight.outputs, -1, weight.group)
    zeros: Any = float(INT4_MIDDLE * (weight.kind == "int4"))
    if weight.zeros is not None:
        zeros = weight.zeros.astype(jnp.float32)[..., None]
    wide = ((wide - zeros) * weight.scales[..., None]).reshape(weight.shape)
    if weight.order is None:
        return wide
    return jnp.zeros_like(wide).at[..., weight.order].set(wide)


def widen_mxfp4(values: jax.Array, scales: jax.Array) -> jax.Array:
    """Numbers of mxfp4 (..., I // 2) uint8, or (..., I) int4, and scales (..., A) uint8: (..., I) bfloat16, exact."""
    codes = unpack_int4(values) if values.dtype == jnp.uint8 else values.astype(jnp.int8)
    blocks = codes.reshape(*scales.shape, mxfp4.BLOCK)
    return mxfp4.decode(blocks, scales[..., None]).reshape(*scales.shape[:-1], -1)


def scales_are_finite(weight: QTensor) -> bool:
    """Whether no scale is NaN or infinite. Waits for a weight that is on a device."""
    scales = np.asarray(weight.scales)
    return bool((scales != mxfp4.NAN_SCALE).all() if weight.kind == "mxfp4" else np.isfinite(scales).all())


def round_activations(x: jax.Array, kind: Activations) -> tuple[jax.Array, jax.Array]:
    """Activations (T, I) with a scale for each token: (T, I) int8 or float8_e4m3fn, and (T, 1) float32."""
    rounded = quantize(x, kind)
    return rounded.values, rounded.scales
