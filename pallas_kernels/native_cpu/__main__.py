"""`python -m pallas_kernels.native_cpu` compiles the kernels for this machine, so that the first start need not."""

from __future__ import annotations

import sys

from pallas_kernels.native_cpu.instructions import available
from pallas_kernels.native_cpu.library import KernelsUnavailable, compiled


def main() -> int:
    usable = available()
    if not usable:
        print("CPU kernels: this CPU has none of the instruction sets that they are written for; XLA serves")
        return 0
    try:
        library = compiled(usable[0])
    except KernelsUnavailable as error:
        print(f"CPU kernels: {error}; XLA serves")
        return 0
    print(f"CPU kernels for {usable[0].name}: {library}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
