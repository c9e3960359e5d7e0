"""What the start-up self-test runs compiles for the devices that it is meant for, by the kernels that it is to try.

A trial that a good kernel cannot compile would withdraw that kernel. Compiles in a process of its own: an error inside
a compiler aborts it.
"""

from __future__ import annotations

import sys

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.runtime.topology import topology_mesh
from pallas_kernels.dispatch import DeviceTarget, select
from pallas_kernels.trials import AttentionTrial, GroupedTrial, MatmulTrial
from tests.aot.compilers import needs_cuda, needs_libtpu
from tests.aot.elsewhere import run_elsewhere

TRIALS = [
    AttentionTrial(32, 8, 128, 64, "bfloat16", "bfloat16", 128**-0.5),
    AttentionTrial(8, 8, 64, 64, "bfloat16", "int8", 0.125, sliding_window=9, soft_cap=30.0, sinks=True),
    MatmulTrial("int4", 128, "bfloat16"),
    GroupedTrial("bfloat16"),
    GroupedTrial("bfloat16", "int4", 128),
]


@pytest.mark.parametrize(
    ("topology", "name"),
    [
        pytest.param("hopper:1", "mosaic_gpu", marks=needs_cuda),
        pytest.param("v5e:1x1", "mosaic_tpu", marks=needs_libtpu),
        pytest.param("v6e:1x1", "mosaic_tpu", marks=[needs_libtpu, pytest.mark.slow]),
    ],
)
def test_trials_compile(topology: str, name: str) -> None:
    done = run_elsewhere(__name__, topology)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.split() == [name] * len(TRIALS)


def compile_trials(topology: str) -> None:
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    whole = NamedSharding(mesh, PartitionSpec())
    for trial in TRIALS:
        prepared = trial.prepare(target)
        backend = select(prepared.op, target, prepared.case).name
        function, arguments = prepared.program(backend)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments)
        with jax.set_mesh(mesh):
            jax.jit(function).lower(*shapes).compile()
        print(backend)


if __name__ == "__main__":
    compile_trials(sys.argv[1])
