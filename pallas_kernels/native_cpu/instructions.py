"""Which instruction sets the kernels are written for, and which of them this machine has."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from pathlib import Path

_AVX2 = ("avx2", "fma")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")
# The kernel's names of features that compilers call otherwise.
_COMPILER_NAMES = {"avx512_bf16": "avx512bf16", "avx512_vnni": "avx512vnni", "avx_vnni": "avxvnni"}


@dataclass(frozen=True)
class InstructionSet:
    """An instruction set that the kernels have code for.

    Attributes:
        name: what users write and logs show.
        features: what the CPU must have, in Linux's names (/proc/cpuinfo).
        products: what it does with weights of bfloat16 and of int8, for people.
    """

    name: str
    features: tuple[str, ...]
    products: str

    @property
    def compiler_flags(self) -> tuple[str, ...]:
        """Options of GCC and Clang that allow its instructions, and no others."""
        return tuple(f"-m{_COMPILER_NAMES.get(feature, feature)}" for feature in self.features)


# The best first.
INSTRUCTION_SETS = (
    InstructionSet("avx512_bf16", (*_AVX512, "avx512_vnni", "avx512_bf16"), "bfloat16 and int8 multiplied as they are"),
    InstructionSet("avx512_vnni", (*_AVX512, "avx512_vnni"), "bfloat16 widened in registers, int8 multiplied as it is"),
    InstructionSet("avx512", _AVX512, "bfloat16 and int8 widened in registers"),
    InstructionSet("avx2_vnni", (*_AVX2, "avx_vnni"), "bfloat16 widened in registers, int8 multiplied as it is"),
    InstructionSet("avx2", _AVX2, "bfloat16 widened in registers, int8 multiplied in pairs"),
)
BY_NAME = {instructions.name: instructions for instructions in INSTRUCTION_SETS}


@functools.cache
def cpu_features() -> frozenset[str]:
    """Features of this CPU in Linux's names; empty on other systems and other kinds of CPU."""
    if platform.machine() != "x86_64":
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def available() -> tuple[InstructionSet, ...]:
    """Those that this CPU has, the best first."""
    return tuple(one for one in INSTRUCTION_SETS if cpu_features().issuperset(one.features))
