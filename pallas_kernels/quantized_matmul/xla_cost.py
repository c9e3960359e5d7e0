"""What XLA's form of the product costs with int4 on a GPU, for people who could have a kernel of their own instead."""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from pallas_kernels.dispatch import refusal, select
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul.api import OP, case_of


def cost_on_gpu(weights: Iterable[QTensor], dtype: jax.typing.DTypeLike) -> str | None:
    """A sentence on what a step of few tokens moves where XLA multiplies by int4 on a GPU, and why nothing else does.

    Args:
        weights: of a model, each kept for its device.
        dtype: of the activations.

    Returns:
        None where there are no such weights.
    """
    triton = next(candidate for candidate in OP.backends if candidate.name == "triton_gpu")
    for weight in weights:
        if weight.kind != "int4" or weight.target is None or weight.target.platform != "gpu":
            continue
        case = case_of(jax.ShapeDtypeStruct((1, weight.inputs), jnp.dtype(dtype)), weight)
        if select(OP, weight.target, case).name == "xla":
            reason = refusal(OP, triton, weight.target, case) or triton.by_name_only(case)
            return (
                "products: XLA writes int4 weights out wide before each product and reads them back, nine times "
                f"their bytes in every step; triton_gpu would read them once, but {reason}"
            )
    return None
