"""The gate of an MLP in one pass over the rows that are real. Legend: T tokens, F width."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from pallas_kernels.native_cpu.library import target_name

KINDS = {"silu": 0, "gelu_tanh": 1}
WIDTH_MULTIPLE = 16  # lanes of the widest vector


def gating(gate_up: jax.Array, count: jax.Array, activation: str, *, instructions: str) -> jax.Array:
    """activation(gate), computed in float32 and rounded to the type of `gate_up`, times up: (T, F) of that type.

    Args:
        gate_up: (T, 2, F) float32 or bfloat16, F a multiple of `WIDTH_MULTIPLE`.
        count: () int32: rows from here on are not computed, and zero.
        activation: one of `KINDS`.
        instructions: what `library.load` was called with.

    Raises:
        ValueError: another type, width or activation.
    """
    tokens, _, width = gate_up.shape
    if gate_up.dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"gate_up is {gate_up.dtype}; it must be float32 or bfloat16")
    if width % WIDTH_MULTIPLE:
        raise ValueError(f"the width is {width}; it must be a multiple of {WIDTH_MULTIPLE}")
    if activation not in KINDS:
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(KINDS)}")
    call = jax.ffi.ffi_call(target_name("gating", instructions), jax.ShapeDtypeStruct((tokens, width), gate_up.dtype))
    return call(gate_up, count, kind=KINDS[activation])
