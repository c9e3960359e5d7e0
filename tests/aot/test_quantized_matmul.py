"""Quantized products through the real compilers: which of them write the wide weight to memory, and which do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jaxinfer.quantization import SCHEMES
from jaxinfer.runtime.topology import ProgramReport, topology_mesh
from tests.aot.compilers import needs_cuda, needs_libtpu, shared_among_tpus
from tests.aot.elsewhere import run_elsewhere

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from compile_products import compile_product

OUTPUTS, INPUTS = 14336, 4096
WIDE = 2 * OUTPUTS * INPUTS  # bytes of the weight in bfloat16


def compiled(topology: str, name: str, tokens: int) -> ProgramReport:
    """The product of one device of a topology, in bfloat16."""
    device = topology_mesh(topology).mesh.devices.flat[0]
    return compile_product(device, name, tokens, OUTPUTS, INPUTS).program


@needs_libtpu
@pytest.mark.parametrize(("topology", "name"), shared_among_tpus(SCHEMES))
def test_a_tpu_writes_no_wide_weight(topology: str, name: str) -> None:
    """int4 has a kernel (`test_mosaic_tpu_quantized.py`), the rest is XLA's."""
    for tokens in (8, 256):
        program = compiled(topology, name, tokens)
        assert program.temporaries < WIDE // 3, (tokens, program)


@needs_cuda
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["int8", "fp8", "w8a8", "fp8-dynamic", "mxfp4"])
def test_hopper_writes_no_wide_weight(name: str) -> None:
    """int4 it does write out, if it is asked to: `test_mosaic_gpu_quantized.py` has the kernel that it is given."""
    done = run_elsewhere(__name__, "hopper:1", name)
    assert done.returncode == 0, done.stderr[-4000:]


def main(topology: str, name: str) -> None:
    for tokens in (8, 256):
        program = compiled(topology, name, tokens)
        print(name, tokens, program)
        assert program.temporaries < WIDE // 4, (name, tokens, program)


if __name__ == "__main__":
    main(*sys.argv[1:])
