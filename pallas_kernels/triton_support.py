"""What the Triton kernels of all ops need on the host: why one cannot run somewhere, and how one is launched.

Triton and jax-triton are imported at a launch and not before: they are optional, and jax-triton needs a GPU build of
JAX.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

import jax

from pallas_kernels.dispatch import DeviceTarget


@dataclasses.dataclass(frozen=True)
class Launch:
    """Everything static about one launch.

    Attributes:
        kernel: "package.module:function".
        name: what profiles show.
        programs: how many there are, on one axis.
        constants: the kernel's constants, by name.
        num_warps: of a program, 32 threads each.
        num_stages: blocks of memory that are in flight or in use.
        compute_capability: of the device, as 10 * major + minor.
    """

    kernel: str
    name: str
    programs: int
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int
    compute_capability: int

    def load(self) -> Any:
        """Imports the kernel."""
        module, _, function = self.kernel.partition(":")
        return getattr(importlib.import_module(module), function)


Run = Callable[[Launch, tuple[Any, ...], tuple[jax.ShapeDtypeStruct, ...]], tuple[jax.Array, ...]]


def run(launch: Launch, arguments: tuple[Any, ...], outputs: tuple[jax.ShapeDtypeStruct, ...]) -> tuple[jax.Array, ...]:
    """Runs a kernel through jax-triton.

    Args:
        arguments: the kernel's arrays and numbers, in its order.
        outputs: shapes and types of its outputs, which follow them.
    """
    import jax_triton

    return jax_triton.triton_call(
        *arguments,
        kernel=launch.load(),
        out_shape=outputs,
        grid=launch.programs,
        name=launch.name,
        compute_capability=launch.compute_capability,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        enable_fp_fusion=False,  # a number less itself is 0 however it was made; products of matrices stay fused
        **launch.constants,
    )


def refusal(target: DeviceTarget) -> str | None:
    """Why no Triton kernel of ours can run on a device, if so."""
    if target.platform != "gpu":
        return "it runs on NVIDIA GPUs only"
    if target.compute_capability is None or target.compute_capability < (8, 0):
        return f"compute capability is {target.compute_capability}; it must be at least (8, 0), Ampere"
    if not _is_installed("jax_triton"):
        return "jax-triton is not installed: pip install jaxinfer[triton]"
    return None


def capability_number(target: DeviceTarget) -> int:
    """10 * major + minor of a target that `refusal` lets pass."""
    assert target.compute_capability is not None, "the backend was chosen for a GPU"
    return 10 * target.compute_capability[0] + target.compute_capability[1]


def power_of_two(value: int) -> int:
    """The smallest power of two that is not below `value`."""
    return 1 << (value - 1).bit_length()


def _is_installed(package: str) -> bool:
    """Whether a package could be imported; does not import it."""
    return importlib.util.find_spec(package) is not None
