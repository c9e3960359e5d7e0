"""What the Triton kernels of all ops need on the host: why one cannot run somewhere, and how one is launched.

Triton and jax-triton are imported at a launch and not before: they are optional, and jax-triton needs a GPU build of
JAX.

Triton writes PTX as new as its own assembler takes it, and XLA assembles it with another one (`ptxas.py`), which may be
older. So Triton is told of that one.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from pallas_kernels import ptxas
from pallas_kernels.dispatch import DeviceTarget

_OLDEST = (0, 3, 1)  # of jax-triton
_OPTIONS_BY_NAME = (0, 4)  # from here on jax-triton hands options to Triton by their names
_INSTALL = "pip install jaxinfer[cuda13] (or cuda12)"


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

    _mend_elimination()
    common: dict[str, Any] = {
        "kernel": launch.load(),
        "grid": launch.programs,
        "name": launch.name,
        "compute_capability": launch.compute_capability,
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        **launch.constants,
    }
    assembler = ptxas.find()
    assert assembler is not None, "the backend was chosen where there is an assembler"
    # A number less itself is 0 however it was made, so nothing is fused; products of matrices stay fused.
    if _version() >= _OPTIONS_BY_NAME:
        options = {"enable_fp_fusion": False, "ptx_version": assembler.ptx}
        return jax_triton.triton_call(*arguments, out_type=outputs, backend_options=options, **common)
    _tell_triton_of(assembler)
    return jax_triton.triton_call(*arguments, out_shape=outputs, enable_fp_fusion=False, **common)


def _mend_elimination() -> None:
    """jax-triton 0.4.0 and 0.4.1 say how their calls are eliminated where nobody reads them by a function of two
    arguments; from 0.12 on JAX calls it with three, of which the second one is not needed."""
    from jax.interpreters import partial_eval
    from jax_triton import triton_lib

    rules, call = partial_eval.dce_rules, triton_lib.triton_kernel_call_p
    rule: Any = rules.get(call)
    if jax.__version_info__ >= (0, 12) and rule is not None and len(inspect.signature(rule).parameters) == 2:
        rules[call] = lambda used, live, equation: rule(used, equation)


def _tell_triton_of(assembler: ptxas.Assembler) -> None:
    """For a jax-triton that cannot say which PTX it wants: Triton then takes this assembler for its own."""
    from triton import knobs

    knobs.nvidia.ptxas = str(assembler.path)
    knobs.nvidia.ptxas_blackwell = str(assembler.path)  # from Hopper on


def refusal(target: DeviceTarget) -> str | None:
    """Why no Triton kernel of ours can run on a device, if so, and what to install."""
    if target.platform != "gpu":
        return "it runs on NVIDIA GPUs only"
    if target.compute_capability is None or target.compute_capability < (8, 0):
        return f"compute capability is {target.compute_capability}; it must be at least (8, 0), Ampere"
    for package, name in (("jax_triton", "jax-triton"), ("triton", "triton")):
        if not _is_installed(package):
            return f"{name} is not installed: {_INSTALL}"
    if _version() < _OLDEST:
        return f"jax-triton is {_dotted(_version())}; it must be at least {_dotted(_OLDEST)}: {_INSTALL}"
    assembler = ptxas.find()
    if assembler is None:
        return f"there is no ptxas, which assembles its kernels, on PATH or where CUDA is installed: {_INSTALL}"
    return assembler.refusal(target.compute_capability)


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


@functools.cache
def _version() -> tuple[int, ...]:
    """jax-triton's."""
    return tuple(int(number) for number in re.findall(r"\d+", importlib.metadata.version("jax-triton"))[:3])


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
