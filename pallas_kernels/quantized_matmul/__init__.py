"""Products of activations with quantized weights. `api.quantized_matmul` is the op."""

from pallas_kernels.quantized_matmul.api import OP, QuantizedMatmulCase, quantized_matmul, quantized_matmul_of_choice

__all__ = ["OP", "QuantizedMatmulCase", "quantized_matmul", "quantized_matmul_of_choice"]
