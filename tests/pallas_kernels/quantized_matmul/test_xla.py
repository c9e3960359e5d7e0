"""The plain XLA backend on this machine."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.dispatch import DeviceTarget, UnknownBackend
from pallas_kernels.qtensor import FOUR_BITS, QTensor, dequantize, quantize
from pallas_kernels.quantized_matmul import quantized_matmul, xla
from pallas_kernels.quantized_matmul.layout import for_target
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product
from tests.pallas_kernels.quantized_matmul.contract import QuantizedMatmulContract

CPU = DeviceTarget("cpu", "cpu")


class TestXla(QuantizedMatmulContract):
    target = CPU
    backend = "xla"


class TestXlaAsOnAnAccelerator(QuantizedMatmulContract):
    """The same program as a GPU compiles, run here: float8 factors stay narrow. XLA:CPU lacks products of bfloat16."""

    target = DeviceTarget("gpu", "NVIDIA H200", (9, 0))
    backend = "xla"
    seeds = range(1)

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        return super().call(x.astype(jnp.float32), weight)


@pytest.mark.longer
class TestXlaAsOnTpu(QuantizedMatmulContract):
    """int4 in JAX's own type, run here: what a TPU keeps where its kernel does not serve."""

    target = DeviceTarget("tpu", "TPU v5 lite")
    backend = "xla"
    seeds = range(1)

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        inputs_apart = (*(1 for _ in weight.outputs), weight.inputs)  # a device's share is no block of words
        kept = for_target(weight, self.target, inputs_apart)
        assert kept.shape == weight.shape
        assert (kept.values.dtype == jnp.int4) == (weight.kind in FOUR_BITS)
        np.testing.assert_array_equal(np.asarray(dequantize(kept)), np.asarray(dequantize(weight)))
        return super().call(x.astype(jnp.float32), kept)


@pytest.mark.longer
class TestXlaWithWords(QuantizedMatmulContract):
    """The other form of int4 there."""

    target = DeviceTarget("tpu", "TPU v5 lite")
    backend = "xla"
    seeds = range(1)

    def refusal(self, x: jax.Array, weight: QTensor) -> str | None:
        return None if for_target(weight, self.target).packed_outputs is not None else "it is not packed"

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        return super().call(x.astype(jnp.float32), for_target(weight, self.target))


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_token_does_not_depend_on_its_company(kind: str) -> None:
    """Bits, from two tokens up; a single one is computed beside a copy of itself."""
    x, weight = cases.build(
        Product(kind, tokens=64, inputs=512, outputs=(96,), activations=kind), np.random.default_rng(0)
    )
    run = jax.jit(lambda x: quantized_matmul(x, weight, target=CPU))
    want = np.asarray(run(x))
    for count in (1, 2, 7, 8, 33):
        np.testing.assert_array_equal(np.asarray(run(x[:count])), want[:count])


@pytest.mark.parametrize("tokens", [8, 40])
@pytest.mark.parametrize("outputs", [40, 37])
def test_mxfp4_is_widened_slice_by_slice(monkeypatch: pytest.MonkeyPatch, tokens: int, outputs: int) -> None:
    """The last slice begins earlier where they do not divide the outputs; memory holds one wide slice."""
    monkeypatch.setattr(xla, "SLICE", 16 * 2048)
    x, weight = cases.build(
        Product("mxfp4", tokens=tokens, outputs=(2, outputs), inputs=2048, group=32), np.random.default_rng(4)
    )
    compiled = jax.jit(lambda x, weight: quantized_matmul(x, weight, target=CPU)).lower(x, weight).compile()
    want = np.asarray(x, np.float64) @ np.asarray(dequantize(weight), np.float64).reshape(2 * outputs, -1).T
    got = np.asarray(compiled(x, weight)).reshape(tokens, -1)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
    wide, wide_slice = (4 * 2048 * count for count in (2 * outputs, 16))
    found = compiled.memory_analysis().temp_size_in_bytes
    assert found < 1.5 * wide_slice < wide / 3, found


def test_mxfp4_on_a_tpu_keeps_its_bits() -> None:
    weight = quantize(jax.random.normal(jax.random.key(0), (24, 96)), "mxfp4")
    kept = for_target(weight, DeviceTarget("tpu", "TPU v5 lite"))
    assert (kept.values.dtype, kept.values.shape, kept.shape) == (jnp.int4, (24, 96), weight.shape)
    kept.check()
    np.testing.assert_array_equal(np.asarray(dequantize(kept)), np.asarray(dequantize(weight)))
    assert for_target(weight, CPU).values is weight.values


def test_bad_input_is_named() -> None:
    x, weight = cases.build(Product(), np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"x has shape \(5, 63\); with a weight \(48, 64\) it must be \(tokens, 64\)"):
        quantized_matmul(x[:, :63], weight, target=CPU)
    with pytest.raises(ValueError, match="x is int32; it must be float32 or bfloat16"):
        quantized_matmul(x.astype(jnp.int32), weight, target=CPU)
    with pytest.raises(ValueError, match=r"weight.scales has shape \(47, 1\); it must be \(48, 1\)"):
        quantized_matmul(x, dataclasses.replace(weight, scales=weight.scales[:47]), target=CPU)
    with pytest.raises(ValueError, match="weight has 5 groups; they must divide its 64 inputs into equal parts"):
        quantized_matmul(x, dataclasses.replace(weight, scales=jnp.ones((48, 5))), target=CPU)
    with pytest.raises(ValueError, match=r"weight\.values is int8; int4 is stored as uint8"):
        quantized_matmul(x, dataclasses.replace(weight, kind="int4"), target=CPU)
    with pytest.raises(
        UnknownBackend, match="backend of quantized_matmul is 'nope'; known: mosaic_tpu, mosaic_gpu, triton_gpu, xla"
    ):
        quantized_matmul(x, weight, target=CPU, backend="nope")
