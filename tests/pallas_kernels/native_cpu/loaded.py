"""The instruction sets whose kernels this machine can compile and run; tests of the others are skipped and say why."""

from __future__ import annotations

import functools

import pytest

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.native_cpu.instructions import INSTRUCTION_SETS
from pallas_kernels.native_cpu.library import KernelsUnavailable, load

NAMES = tuple(one.name for one in INSTRUCTION_SETS)


@functools.cache
def _refusal(name: str) -> str | None:
    try:
        load(name)
    except KernelsUnavailable as error:
        return str(error)
    return None


def target_for(name: str) -> DeviceTarget:
    """A CPU with the kernels of one instruction set; skips the test where they cannot be had."""
    if (reason := _refusal(name)) is not None:
        pytest.skip(reason)
    return DeviceTarget("cpu", "cpu", instructions=name)
