"""Writers of the published formats, in plain arithmetic from their specifications. They share nothing with the reader.

Each draws whole numbers, zero points and scales at random and returns the tensors of one linear layer, and the values
that they stand for: (number - zero point) * scale in float32, one layer of (outputs, inputs).

Sources: AutoAWQ's `WQLinear_GEMM`, AutoGPTQ's and GPTQModel's `QuantLinear.pack`, the compressed-tensors package, and
the checkpoints of DeepSeek-V3 and Qwen3-FP8 for blocks, those of gpt-oss for MXFP4.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the output at each place of a word, lowest bits first
FP8 = ml_dtypes.float8_e4m3fn


@dataclass(frozen=True)
class Packed:
    """tensors: by suffix. value: (O, I) float32."""

    tensors: dict[str, np.ndarray]
    value: np.ndarray


def words(columns: list[np.ndarray], bits: int) -> np.ndarray:
    """Columns of whole numbers, the first in the lowest bits, as one int32 each 32 // bits of them; stacked last."""
    per = 32 // bits
    made = []
    for begin in range(0, len(columns), per):
        word = np.zeros(columns[0].shape, np.uint64)
        for place, column in enumerate(columns[begin : begin + per]):
            word += column.astype(np.uint64) * np.uint64(2 ** (bits * place))
        made.append(word)
    return np.stack(made, axis=-1).astype(np.uint32).view(np.int32)


def numbers(random: np.random.Generator, outputs: int, inputs: int, bits: int) -> np.ndarray:
    """Whole numbers of `bits` bits, the smallest and largest among them."""
    drawn = random.integers(0, 2**bits, (outputs, inputs))
    drawn[0, :2] = 0, 2**bits - 1
    return drawn


def half_scales(random: np.random.Generator, outputs: int, groups: int, bits: int) -> np.ndarray:
    return (random.uniform(0.2, 1.0, (outputs, groups)) * 0.3 / 2**bits).astype(np.float16)


def widened(q: np.ndarray, zeros: np.ndarray, scales: np.ndarray, index: np.ndarray) -> np.ndarray:
    """(q - zero) * scale with the group `index` (I,) of every input; zeros and scales are (O, A)."""
    value = np.empty(q.shape, np.float32)
    for i in range(q.shape[1]):
        whole = (q[:, i] - zeros[:, index[i]]).astype(np.float32)
        value[:, i] = whole * scales[:, index[i]].astype(np.float32)
    return value


def awq(random: np.random.Generator, outputs: int, inputs: int, group: int) -> Packed:
    size = inputs if group == -1 else group
    q = numbers(random, outputs, inputs, 4)
    zeros = random.integers(0, 16, (outputs, inputs // size))
    scales = half_scales(random, outputs, inputs // size, 4)

    def pack(matrix: np.ndarray) -> np.ndarray:  # (R, O) -> (R, O // 8)
        return words([matrix[:, 8 * (o // 8) + AWQ_ORDER[o % 8]] for o in range(outputs)], 4)

    tensors = {"qweight": pack(q.T), "qzeros": pack(zeros.T), "scales": scales.T}
    return Packed(tensors, widened(q, zeros, scales, np.arange(inputs) // size))


def gptq(
    random: np.random.Generator,
    outputs: int,
    inputs: int,
    group: int,
    *,
    bits: int = 4,
    symmetric: bool = True,
    version: str = "gptq",
    index: np.ndarray | None = None,
) -> Packed:
    """index: (I,) the group of every input, for act-order."""
    size = inputs if group == -1 else group
    index = np.arange(inputs) // size if index is None else index
    q = numbers(random, outputs, inputs, bits)
    zeros = np.full((outputs, inputs // size), 2 ** (bits - 1))
    if not symmetric:
        zeros = random.integers(0, 2**bits, zeros.shape)
        zeros[0, 0] = 0  # less one: all ones
    scales = half_scales(random, outputs, inputs // size, bits)
    kept = (zeros - 1) % 2**bits if version == "gptq" else zeros
    tensors = {
        "qweight": words([q[:, i] for i in range(inputs)], bits).T,
        "qzeros": words([kept[o] for o in range(outputs)], bits),
        "scales": scales.T,
        "g_idx": index.astype(np.int32),
    }
    return Packed(tensors, widened(q, zeros, scales, index))


def pack_quantized(
    random: np.random.Generator,
    outputs: int,
    inputs: int,
    group: int,
    *,
    bits: int = 4,
    symmetric: bool = True,
    index: np.ndarray | None = None,
) -> Packed:
    """compressed-tensors' integers are signed, and packed with 2^(bits - 1) added."""
    size = inputs if group == -1 else group
    middle = 2 ** (bits - 1)
    q = numbers(random, outputs, inputs, bits) - middle
    scales = half_scales(random, outputs, inputs // size, bits).astype(ml_dtypes.bfloat16)
    zeros = np.zeros(scales.shape, np.int64)
    tensors = {
        "weight_packed": words([q[:, i] + middle for i in range(inputs)], bits),
        "weight_scale": scales,
        "weight_shape": np.array([outputs, inputs], np.int64),
    }
    if not symmetric:
        zeros = random.integers(-middle, middle, scales.shape)
        tensors["weight_zero_point"] = words([zeros[o] + middle for o in range(outputs)], bits).T
    if index is not None:
        tensors["weight_g_idx"] = index.astype(np.int32)
    return Packed(tensors, widened(q, zeros, scales, np.arange(inputs) // size if index is None else index))


def int_quantized(random: np.random.Generator, outputs: int, inputs: int, *, whole: bool = False) -> Packed:
    """whole: one scale for the matrix, else one for each output."""
    q = numbers(random, outputs, inputs, 8) - 128
    scales = random.uniform(0.2, 1.0, (1 if whole else outputs, 1)).astype(np.float32) * np.float32(0.3 / 256)
    value = q.astype(np.float32) * scales
    return Packed({"weight": q.astype(np.int8), "weight_scale": scales.reshape(-1) if whole else scales}, value)


def floats(random: np.random.Generator, outputs: int, inputs: int) -> np.ndarray:
    """float8 e4m3 of all sizes, denormals and the largest among them, none NaN."""
    q = random.normal(0, 60, (outputs, inputs)).clip(-448, 448).astype(FP8)
    q[0, :4] = np.array([448, -448, 2**-9, 0], FP8)
    return q


def float_quantized(random: np.random.Generator, outputs: int, inputs: int, *, whole: bool = False) -> Packed:
    q = floats(random, outputs, inputs)
    scales = random.uniform(0.5, 1.0, (1 if whole else outputs, 1)).astype(np.float32) * np.float32(2e-3)
    value = q.astype(np.float32) * scales
    return Packed({"weight": q, "weight_scale": scales.reshape(-1) if whole else scales}, value)


def float_blocks(random: np.random.Generator, outputs: int, inputs: int, suffix: str = "weight_scale_inv") -> Packed:
    """A scale for each 128 x 128; the last block of outputs may be smaller."""
    q = floats(random, outputs, inputs)
    scales = random.uniform(0.5, 1.0, (-(-outputs // 128), inputs // 128)).astype(ml_dtypes.bfloat16)
    value = np.empty((outputs, inputs), np.float32)
    for o in range(outputs):
        for i in range(0, inputs, 128):
            value[o, i : i + 128] = q[o, i : i + 128].astype(np.float32) * np.float32(scales[o // 128, i // 128])
    # Exact: a power of two.
    return Packed({"weight": q, suffix: (scales.astype(np.float32) * 2**-9)}, value * np.float32(2**-9))


def mxfp4(random: np.random.Generator, outputs: int, inputs: int, parameter: str = "weight") -> Packed:
    """All 16 numbers, the even input in a byte's low half; scales are bytes of exponents."""
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    codes = random.integers(0, 16, (outputs, inputs))
    codes[0, :16] = np.arange(16)
    exponents = random.integers(118, 124, (outputs, inputs // 32))
    data = np.empty((outputs, inputs // 32, 16), np.uint8)
    value = np.empty((outputs, inputs), np.float32)
    for i in range(0, inputs, 2):
        data[:, i // 32, i % 32 // 2] = codes[:, i] + 16 * codes[:, i + 1]
    for i in range(inputs):
        value[:, i] = np.ldexp(numbers[codes[:, i]], exponents[:, i // 32] - 127)
    return Packed({f"{parameter}_blocks": data, f"{parameter}_scales": exponents.astype(np.uint8)}, value)
