"""What XLA's form of attention costs on a GPU, for people who could have a kernel of their own instead."""

from __future__ import annotations

from collections.abc import Sequence

from pallas_kernels.dispatch import DeviceTarget, refusal, select
from pallas_kernels.paged_attention import xla
from pallas_kernels.paged_attention.api import OP, PagedAttentionCase

_UNIT = 1024  # tokens


def cost_on_gpu(
    target: DeviceTarget, layers: Sequence[PagedAttentionCase], most_keys: int, backend: str | None
) -> str | None:
    """A sentence on how many kernels a step launches where XLA serves on a GPU, and why nothing else does.

    Args:
        layers: the case of each layer.
        most_keys: tokens of the longest row that there can be.
        backend: the one that was asked for by name; None: none was.

    Returns:
        None where XLA's form serves no layer, or the device is no GPU.
    """
    served = [case for case in layers if select(OP, target, case, backend).name == "xla"]
    if target.platform != "gpu" or not served:
        return None

    def step(keys: int) -> int:
        return sum(xla.launches(case.num_rows, keys, case.page_size, case.options.sliding_window) for case in served)

    longest = "" if most_keys <= _UNIT else f", {step(most_keys):,} at {most_keys:,} tokens"
    cost = (
        f"XLA's own form, which launches about {step(_UNIT):,} kernels a step for {_UNIT:,} tokens of its longest row"
    )
    if backend is not None:
        return f"attention: {cost}{longest}; it was asked for by name"
    triton = next(candidate for candidate in OP.backends if candidate.name == "triton_gpu")
    reason = refusal(OP, triton, target, served[0])
    return f"attention: {cost}{longest}; triton_gpu would launch a few a layer, but {reason}"
