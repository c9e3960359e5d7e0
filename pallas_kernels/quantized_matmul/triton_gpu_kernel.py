"""The Triton kernel of `triton_gpu.py`: a program multiplies a tile of outputs by a tile of rows over a part of the
inputs.

Legend: T rows, O outputs, I inputs, A groups, g = I // A, Z parts, BO outputs of a program, BT rows of a program, B
slices of a turn of the loop, s inputs of a slice: they share a scale, L numbers of a word of the weights.

A turn of the loop takes B slices of the inputs. With few rows a slice has warps of its own (products of three axes),
so that many warps share a program's few outputs; their sums come together at the end. Outputs are the rows of the
products that tensor cores compute, so that few rows of activations fill their narrow side. Weights go from memory to
registers and never back: wide ones exist nowhere else.

Numbers are widened by their bits: n in the lower bits of 2^7 is 2^7 + n in bfloat16, and in those of 2^23 it is 2^23 +
n in float32; what is taken from it leaves an exact number. A conversion takes Ampere several times as long. int4 is
read in words of L numbers. `x` comes with inputs 0, L, 2L, ... before 1, L + 1, ..., so the numbers at one place of the
words have a product of their own and nothing is interleaved; in words of 32 bits two places are masked at once.

Scales multiply sums, in float32: those of outputs all of them, those of groups the sums of a slice. Only what a product
reads is copied ahead of it by Triton, and nothing of a byte; so scales and zero points of groups are read two turns
ahead.

Importing this module imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl

from pallas_kernels.triton_numbers import e4m3_over_256


@triton.jit
def multiply(
    x: tl.tensor, values: tl.tensor, scales: tl.tensor, zeros: tl.tensor, out: tl.tensor,
    rows: tl.constexpr, outputs: tl.constexpr, inputs: tl.constexpr, groups: tl.constexpr, parts: tl.constexpr,
    row_tile: tl.constexpr, output_tile: tl.constexpr, slices: tl.constexpr, slice_inputs: tl.constexpr,
    numbers: tl.constexpr, kind: tl.constexpr, has_zeros: tl.constexpr, whole: tl.constexpr,
) -> None:  # fmt: skip
    """One program of Z * (O / BO) * (T / BT), of which those of the same weights follow each other.

    Args:
        x: (T, I) float32 or bfloat16, the inputs of a row in the order (L, I // L) instead of (I // L, L).
        values: (O, I) int8, or float8_e4m3fn as uint8; (O, I // 2) uint8 for int4.
        scales: (O, A) float32. zeros: (O, A) uint8 or int8, read if `has_zeros`.
        out: (Z, T, O) float32.
        row_tile, output_tile, slices, slice_inputs, numbers: BT, BO, B, s and L.
        kind: "int8", "int4" or "fp8". whole: whether turns of the loop divide I, so that no input needs a mask.
    """
    row, column, part = _tile(rows, outputs, row_tile, output_tile)
    width: tl.constexpr = inputs // numbers  # words of a row of `values`
    each: tl.constexpr = slice_inputs // numbers  # of them, those of a slice
    turns: tl.constexpr = (inputs + slice_inputs * slices - 1) // (slice_inputs * slices)
    turns_each: tl.constexpr = (turns + parts - 1) // parts
    begin, end = part * turns_each, tl.minimum((part + 1) * turns_each, turns)
    # Beyond the last output it is read again, which costs no mask; nothing of that is written.
    known = tl.minimum(column, outputs - 1).to(tl.int64)
    if slices > 1:
        known, vector = known[None, :, None], row[None, :, None]
        word = tl.arange(0, each)[None, None, :]
        number = tl.arange(0, slices)[:, None, None]
        acc = tl.zeros([slices, output_tile, row_tile], tl.float32)
    else:
        known, vector = known[:, None], row[:, None]
        word = tl.arange(0, each)[None, :]
        number = tl.zeros([1, 1], tl.int32)
        acc = tl.zeros([output_tile, row_tile], tl.float32)
    weights = _words(values, numbers) + known * width
    activations = x + vector.to(tl.int64) * inputs
    group_inputs: tl.constexpr = inputs // groups
    if has_zeros and groups == 1:
        zero_of_all = tl.load(zeros + known)
    if groups > 1:
        first, second = begin * slices + number, (begin + 1) * slices + number
        if has_zeros:
            group_zero = _scale(zeros, known, first, slice_inputs, group_inputs, groups)
            next_zero = _scale(zeros, known, second, slice_inputs, group_inputs, groups)
        scale = _scale(scales, known, first, slice_inputs, group_inputs, groups)
        next_scale = _scale(scales, known, second, slice_inputs, group_inputs, groups)

    for turn in range(begin, end):
        place = (turn * slices + number) * each + word
        if whole:  # noqa: SIM108
            stored = tl.load(weights + place)
        else:
            stored = tl.load(weights + place, mask=place < width, other=0)
        seen = vector < rows if whole else (vector < rows) & (place < width)
        zero = (zero_of_all if groups == 1 else group_zero) if has_zeros else None
        sums = tl.zeros(acc.shape, tl.float32) if groups > 1 else acc
        sums = _products(stored, activations, place, seen, zero, sums, width, numbers, kind)
        if groups > 1:
            acc += sums * scale
            scale = next_scale + 0.0  # an operation: Triton copies nothing ahead in loops that only hand a value on
            next_scale = _scale(scales, known, (turn + 2) * slices + number, slice_inputs, group_inputs, groups)
            if has_zeros:
                group_zero = next_zero + 0.0
                next_zero = _scale(zeros, known, (turn + 2) * slices + number, slice_inputs, group_inputs, groups)
        else:
            acc = sums

    if slices > 1:
        acc = tl.sum(acc, axis=0)
    _store(acc, scales, out, part, row, column, rows, outputs, groups, kind)


@triton.jit
def _tile(
    rows: tl.constexpr, outputs: tl.constexpr, row_tile: tl.constexpr, output_tile: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The program's rows (BT,), its outputs (BO,) and its part of the inputs."""
    row_tiles: tl.constexpr = (rows + row_tile - 1) // row_tile
    output_tiles: tl.constexpr = (outputs + output_tile - 1) // output_tile
    program = tl.program_id(0)
    row = program % row_tiles * row_tile + tl.arange(0, row_tile)
    column = program // row_tiles % output_tiles * output_tile + tl.arange(0, output_tile)
    return row, column, program // (row_tiles * output_tiles)


@triton.jit
def _products(
    stored: tl.tensor, activations: tl.tensor, place: tl.tensor, seen: tl.tensor, zero: tl.tensor | None,
    sums: tl.tensor, width: tl.constexpr, numbers: tl.constexpr, kind: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """`sums` and the products of a turn: of the numbers at each place of the words in turn."""
    for n in tl.static_range(numbers):
        some = tl.load(activations + n * width + place, mask=seen, other=0.0)
        wide = _widened(stored, n, numbers, zero, kind).to(some.dtype)
        sums = tl.dot(wide, _transposed(some), sums, input_precision="ieee")
    return sums


@triton.jit
def _store(
    acc: tl.tensor, scales: tl.tensor, out: tl.tensor, part: tl.tensor, row: tl.tensor, column: tl.tensor,
    rows: tl.constexpr, outputs: tl.constexpr, groups: tl.constexpr, kind: tl.constexpr,
) -> None:  # fmt: skip
    """Writes (BO, BT), times the scales that are of outputs, where there are rows and outputs."""
    if groups == 1:
        acc = acc * tl.load(scales + tl.minimum(column, outputs - 1))[:, None]
    if kind == "fp8":
        acc = acc * 256.0
    target = out + (part * rows + row).to(tl.int64)[None, :] * outputs + column[:, None]
    tl.store(target, acc, mask=(row < rows)[None, :] & (column < outputs)[:, None])


@triton.jit
def _words(values: tl.tensor, numbers: tl.constexpr) -> tl.tensor:
    """The weights as words of so many numbers."""
    if numbers == 8:
        values = values.to(tl.pointer_type(tl.uint32))
    elif numbers == 4:
        values = values.to(tl.pointer_type(tl.uint16))
    return values


@triton.jit
def _scale(
    scales: tl.tensor, known: tl.tensor, number: tl.tensor, slice_inputs: tl.constexpr, group_inputs: tl.constexpr,
    groups: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """The scales (or zero points) of slices, in float32; beyond the last one, of the last."""
    group = tl.minimum(number * slice_inputs // group_inputs, groups - 1)
    return tl.load(scales + known * groups + group).to(tl.float32)


@triton.jit
def _transposed(some: tl.tensor) -> tl.tensor:
    """The last two axes exchanged."""
    return tl.permute(some, (0, 2, 1)) if len(some.shape) == 3 else tl.trans(some)


@triton.jit
def _widened(
    stored: tl.tensor, n: tl.constexpr, numbers: tl.constexpr, zero: tl.tensor | None, kind: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Number `n` of every word less `zero`, exactly, as zero points are numbers of the kind or one more; without them
    less 0, and 8 for int4. float8_e4m3fn divided by 256.

    Returns:
        bfloat16 for int4, else float32.
    """
    if kind == "fp8":
        wide = e4m3_over_256(stored)
    elif kind == "int4":
        if numbers == 8:
            two = ((stored >> (n % 4 * 4)) & 0x000F000F) | 0x43004300
            bits = (two >> (n // 4 * 16)).to(tl.uint16)
        else:
            bits = ((stored.to(tl.uint16) >> (n * 4)) & 0x000F) | 0x4300
        wide = bits.to(tl.bfloat16, bitcast=True)
        wide = wide - 136.0 if zero is None else wide - (128.0 + zero).to(tl.bfloat16)
    else:
        positive = (stored.to(tl.int32) & 255) ^ 128  # 128 more
        wide = (positive | 0x4B000000).to(tl.float32, bitcast=True)
        wide = wide - 8388736.0 if zero is None else wide - (8388736.0 + zero)
    return wide
