"""The one step of Hopper's MXFP4 kernels that no interpreter runs: bits of numbers made in registers."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.mosaic.gpu import utils

from pallas_kernels import mosaic_gpu_mxfp4
from pallas_kernels.qtensor import pack_int4


def test_registers_widen_as_the_interpreter_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of numbers, at each of the four places of a word, on numpy words instead of the compiler's values."""
    from jax._src.lib.mlir import ir
    from jax._src.lib.mlir.dialects import arith

    monkeypatch.setattr(utils, "c", lambda value, kind: np.uint32(value))
    functions = {"shrui": np.right_shift, "shli": np.left_shift, "andi": np.bitwise_and, "ori": np.bitwise_or}
    for name, function in functions.items():
        monkeypatch.setattr(arith, name, function)
    low, high = np.divmod(np.arange(256, dtype=np.uint32), 16)
    sizes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    numbers = np.concatenate([sizes, -sizes])
    others = np.random.default_rng(0).integers(0, 2**32, 256).astype(np.uint32)
    with ir.Context():
        for place in range(4):
            field = np.uint32(0x000F000F << 4 * place)
            bits = (others & ~field) | (low << np.uint32(4 * place)) | (high << np.uint32(4 * place + 16))
            pair = mosaic_gpu_mxfp4._pair_of_bits(bits, place)
            for half, codes in ((pair & 0xFFFF, low), (pair >> 16, high)):
                wide = (half << 16).astype(np.uint32).view(np.float32) * np.float64(2.0**126)
                np.testing.assert_array_equal(wide, numbers[codes])
    packed = pack_int4(jnp.arange(16).reshape(1, 16).repeat(2, axis=1))
    interpreted = np.asarray(mosaic_gpu_mxfp4._widened(packed, interpreted=True), np.float32)
    np.testing.assert_array_equal(np.sort(interpreted), np.sort(np.tile(numbers, 2))[None])


def test_scales_are_powers_of_two() -> None:
    got = np.asarray(mosaic_gpu_mxfp4._power(jnp.arange(256).astype(jnp.uint8)), np.float32)
    want = 2.0 ** (np.arange(255) - 127.0)
    np.testing.assert_array_equal(got[1:255], want[1:])
    assert np.isnan(got[255])
    assert got[0] in (0.0, want[0])  # a CPU may flush it
