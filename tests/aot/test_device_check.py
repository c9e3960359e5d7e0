"""The timed programs of `scripts/device_check.py` through the real compilers, for a GPU that is not here.

A device is rarely at hand: that its time is not spent on a program that does not compile, or that copies its pages, is
found out before. Compiles in a process of its own: an error inside LLVM aborts it.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxinfer.runtime.topology import report, topology_mesh
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.trials import XLA
from tests.aot.compilers import needs_cuda
from tests.aot.elsewhere import run_elsewhere

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))  # as `python scripts/device_check.py` has it

from device_checks import attention_ours, correctness, expert_products, product_ours  # noqa: E402
from device_checks.attention_cases import attention_cases  # noqa: E402
from device_checks.expert_cases import expert_cases  # noqa: E402
from device_checks.product_cases import product_cases  # noqa: E402
from device_checks.settings import Settings  # noqa: E402

pytestmark = [needs_cuda, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("backend", "count"),
    [("mosaic_gpu", 1), *(pytest.param(name, 99, marks=pytest.mark.slow) for name in ("mosaic_gpu", "xla"))],
)
def test_timed_attention_compiles(backend: str, count: int) -> None:
    _compiles("attention", backend, str(count))


@pytest.mark.parametrize("backend", ["xla", "mosaic_gpu"])
def test_timed_products_compile(backend: str) -> None:
    _compiles("products", backend, "8")


def test_timed_grouped_products_compile() -> None:
    _compiles("experts", "mosaic_gpu", "2")


@pytest.mark.slow
def test_what_is_compared_with_xla_compiles() -> None:
    _compiles("correctness", "mosaic_gpu", "99")


def _compiles(*what: str) -> None:
    done = run_elsewhere(__name__, "hopper:1", *what, timeout=580)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "compiled " in done.stdout


def compile_correctness(topology: str, backend: str, count: int) -> None:
    """By the kernel and by XLA; every op has a form that the kernel serves."""
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    whole = NamedSharding(mesh, PartitionSpec())
    served = set()
    for what, trial in correctness.trials()[:count]:
        prepared = correctness.prepare(trial, target)
        for known in prepared.op.backends:
            if known.name not in (backend, XLA) or known.supports(target, prepared.case) is not None:
                continue
            function, arguments = prepared.program(known.name)
            shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), arguments)
            with jax.set_mesh(mesh):
                jax.jit(function).lower(*shapes).compile()
            served.add((prepared.op.name, known.name))
            print(f"compiled {what}")
    assert served == {(op.name, name) for op in correctness.OPS.values() for name in (backend, XLA)}


def compile_products(topology: str, backend: str, count: int) -> None:
    """The first `count` programs that the backend serves; none moves a weight that it could have read in place."""
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    for case in product_cases(Settings(ROOT, ROOT))[:count]:
        x, weight = product_ours.abstract_arguments(case, target, NamedSharding(mesh, PartitionSpec()))
        if (case.scheme == "int4") != (backend == "mosaic_gpu"):
            continue  # XLA writes int4 out wide, which is why there is a kernel, and for int4 alone
        with jax.set_mesh(mesh):
            compiled = product_ours.lower(case, target, backend, x, [weight] * case.weights).compile()
        memory = report(compiled)
        assert memory.temporaries < case.needed_bytes / 4, (case.name, memory)
        print(f"compiled {case.name}")


def compile_experts(topology: str, backend: str, count: int) -> None:
    """The first `count` programs; with a few tokens nothing of the size of the experts that are read is written."""
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    for case in expert_cases(Settings(ROOT, ROOT))[:count]:
        sharding = NamedSharding(mesh, PartitionSpec())
        x, weight, sizes = expert_products.abstract_arguments(case, target, sharding)
        product = expert_products.product_of(target, backend)
        with jax.set_mesh(mesh):
            compiled = expert_products.lower(case, product, x, [weight] * case.weights, sizes).compile()
        memory = report(compiled)
        assert case.kind == "prefill" or memory.temporaries < case.needed_bytes / 4, (case.name, memory)
        print(f"compiled {case.name}")


def compile_cases(topology: str, backend: str, count: int) -> None:
    """The first `count` programs: pages donated and not copied, and turns that need no answer from the device."""
    mesh = topology_mesh(topology).mesh
    target = DeviceTarget.of(mesh.devices.flat[0])
    programs = {case.program: case for case in reversed(attention_cases(Settings(ROOT, ROOT)))}
    for case in list(reversed(programs.values()))[:count]:
        arguments: Any = attention_ours.abstract_arguments(case, target, NamedSharding(mesh, PartitionSpec()))
        with jax.set_mesh(mesh):
            compiled = attention_ours.lower(case, target, backend, *arguments).compile()
        pages = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(arguments[0][1:]))
        memory = report(compiled)
        assert memory.donated >= pages, (case.name, memory)
        assert memory.temporaries < pages / 10, (case.name, memory)
        _, turns, _ = attention_ours.loop_of(case, backend, target)
        assert re.search(rf'"known_trip_count":\{{"n":"{turns}"', compiled.as_text()), case.name
        print(f"compiled {case.name}")


if __name__ == "__main__":
    compile_them = {
        "attention": compile_cases,
        "correctness": compile_correctness,
        "products": compile_products,
        "experts": compile_experts,
    }
    compile_them[sys.argv[2]](sys.argv[1], sys.argv[3], int(sys.argv[4]))
