"""The Triton kernel of `triton_gpu.py`: a program multiplies a tile of outputs by a tile of rows over a part of the
inputs.

Legend: T rows, O outputs, I inputs, A groups, g = I // A, Z parts, BO outputs of a program, BT rows of a program, s
inputs of a stretch: those of one product, which share a scale.

A stretch of weights is read, widened, scaled and multiplied; outputs are the rows of the product that tensor cores
compute, so that few rows of activations fill their narrow side. Weights go from memory to registers and never back:
wide ones exist nowhere else.

Numbers become float32 by their bits: n in the lower bits of 2^23 is 2^23 + n, and what is taken from it leaves an exact
number. That is one operation where a conversion takes four times as long on Ampere. Scales of outputs multiply the
sums. Scales of groups multiply the weights in float32, which are then rounded to the activations' type: only what a
product reads is copied ahead of it, and scales that came later would be waited for in every stretch.

A byte of int4 holds two inputs: `x` comes with the even inputs first and the odd ones behind them, so each half of the
bytes has a product of its own and nothing is interleaved.

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
    row_tile: tl.constexpr, output_tile: tl.constexpr, stretch: tl.constexpr, stretches: tl.constexpr,
    kind: tl.constexpr, has_zeros: tl.constexpr, whole: tl.constexpr,
) -> None:  # fmt: skip
    """One program of Z * (O / BO) * (T / BT), of which those of the same weights follow each other.

    Args:
        x: (T, I) float32 or bfloat16; for int4 the even inputs of a row stand before the odd ones.
        values: (O, I) int8, or float8_e4m3fn as uint8; (O, I // 2) uint8 for int4.
        scales: (O, A) float32. zeros: (O, A) float32, read if `has_zeros`.
        out: (Z, T, O) float32.
        row_tile, output_tile: BT and BO. stretch: s. stretches: of one turn of the loop.
        kind: "int8", "int4" or "fp8". whole: whether turns of the loop divide I, so that no input needs a mask.
    """
    row_tiles: tl.constexpr = (rows + row_tile - 1) // row_tile
    output_tiles: tl.constexpr = (outputs + output_tile - 1) // output_tile
    program = tl.program_id(0)
    row = program % row_tiles * row_tile + tl.arange(0, row_tile)
    column = program // row_tiles % output_tiles * output_tile + tl.arange(0, output_tile)
    part = program // (row_tiles * output_tiles)
    # Beyond the last output it is read again, which costs no mask; nothing of that is written.
    known = tl.minimum(column, outputs - 1).to(tl.int64)

    halves: tl.constexpr = 2 if kind == "int4" else 1
    width: tl.constexpr = inputs // halves  # numbers of a row of `values`
    each: tl.constexpr = stretch // halves  # of them, those of a stretch
    turns: tl.constexpr = (inputs + stretch * stretches - 1) // (stretch * stretches)
    turns_each: tl.constexpr = (turns + parts - 1) // parts
    begin = part * turns_each
    end = tl.minimum(begin + turns_each, turns)
    weights = values + known[:, None] * width
    activations = x + row.to(tl.int64)[:, None] * inputs
    real = (row < rows)[:, None]

    if has_zeros and groups == 1:
        middle_of_all = tl.load(zeros + known)[:, None]
    acc = tl.zeros([output_tile, row_tile], tl.float32)
    for turn in range(begin, end):
        for number in tl.static_range(stretches):
            first = turn * stretches + number
            place = first * each + tl.arange(0, each)
            inside = (place < width)[None, :]
            if whole:
                stored = tl.load(weights + place[None, :])
                seen = real
            else:
                stored = tl.load(weights + place[None, :], mask=inside, other=0)
                seen = real & inside
            if groups > 1:
                group = first * stretch // (inputs // groups)
                if not whole:
                    group = tl.minimum(group, groups - 1)
                scale = tl.load(scales + known * groups + group)[:, None]
            if not has_zeros:
                middle = 8.0 if kind == "int4" else 0.0
            elif groups == 1:
                middle = middle_of_all
            else:
                middle = tl.load(zeros + known * groups + group)[:, None]
            for half in tl.static_range(halves):
                some = tl.load(activations + half * width + place[None, :], mask=seen, other=0.0)
                wide = _widened(stored, half, middle, kind)
                if groups > 1:
                    wide = wide * scale
                acc = tl.dot(wide.to(some.dtype), tl.trans(some), acc, input_precision="ieee")

    if groups == 1:
        acc = acc * tl.load(scales + known)[:, None]
    if kind == "fp8":
        acc = acc * 256.0
    target = out + (part * rows + row).to(tl.int64)[None, :] * outputs + column[:, None]
    tl.store(target, acc, mask=(row < rows)[None, :] & (column < outputs)[:, None])


@triton.jit
def _widened(stored: tl.tensor, half: tl.constexpr, middle: tl.tensor, kind: tl.constexpr) -> tl.tensor:
    """The numbers in `stored` less `middle`, in float32 and exactly; float8_e4m3fn divided by 256, and less nothing.

    Args:
        half: for int4, 0 for the numbers in the low halves of the bytes, 1 for those in the high ones.
    """
    if kind == "fp8":
        wide = e4m3_over_256(stored)
    elif kind == "int4":
        number = (stored & 15) if half == 0 else (stored >> 4)
        wide = _float32(number.to(tl.int32)) - (8388608.0 + middle)
    else:
        number = (stored.to(tl.int32) & 255) ^ 128  # 128 more, which is not negative
        wide = _float32(number) - (8388736.0 + middle)
    return wide


@triton.jit
def _float32(number: tl.tensor) -> tl.tensor:
    """2^23 more than a number that is not negative and smaller than that."""
    return (number | 0x4B000000).to(tl.float32, bitcast=True)
