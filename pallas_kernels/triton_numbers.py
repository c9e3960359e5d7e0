"""Quantized numbers in Triton kernels. Importing this module imports Triton."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def e4m3_over_256(stored: tl.tensor) -> tl.tensor:
    """float8_e4m3fn, given as uint8, divided by 256, in float32: integer arithmetic, as Triton refuses the type below
    compute capability 8.9.

    The seven bits behind the sign of an e4m3 are the upper bits behind the sign of the float16 that is a 256th of it:
    the exponents' biases are 7 and 15, and numbers too small for an exponent are counted alike.
    """
    bits = stored.to(tl.uint16)
    half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
    return half.to(tl.float16, bitcast=True).to(tl.float32)
