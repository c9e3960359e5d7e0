"""The Triton kernel in Triton's own interpreter: the contract. Arithmetic that would make a NaN anywhere raises."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import triton_support
from pallas_kernels.dispatch import DeviceTarget, select
from pallas_kernels.qtensor import QTensor
from pallas_kernels.quantized_matmul import OP, quantized_matmul, triton_gpu
from pallas_kernels.quantized_matmul.api import case_of
from pallas_kernels.quantized_matmul.triton_gpu_plan import TritonMatmulPlan
from pallas_kernels.quantized_matmul.xla_cost import cost_on_gpu
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product
from tests.pallas_kernels.quantized_matmul.contract import PRODUCTS as CONTRACT_PRODUCTS
from tests.pallas_kernels.quantized_matmul.contract import QuantizedMatmulContract
from tests.pallas_kernels.triton_interpreter import Interpreter, interpreted

AMPERE = DeviceTarget("gpu", "NVIDIA A100", (8, 0))
SMALL = Product("int4", tokens=3, inputs=512, outputs=(70,), group=128, dtype=jnp.bfloat16)
# What the contract's products leave out: inputs that no turn of the loop divides, with each size of group and without;
# stretches of several groups; tiles of rows and outputs that are not full; the sizes of each number of rows.
PRODUCTS = (
    dataclasses.replace(SMALL, inputs=640, zeros=True),
    dataclasses.replace(SMALL, inputs=416, group=32, zeros=True, tokens=16),
    dataclasses.replace(SMALL, inputs=320, group=64, tokens=17),
    dataclasses.replace(SMALL, inputs=1024, group=512, tokens=33, order=True),
    dataclasses.replace(SMALL, inputs=270, group=None, zeros=True),
    dataclasses.replace(SMALL, inputs=514, group=None, tokens=64),
    dataclasses.replace(SMALL, outputs=(3, 50), tokens=130, inputs=192, group=64, zeros=True),
    dataclasses.replace(SMALL, kind="fp8", inputs=384, tokens=8),
    dataclasses.replace(SMALL, kind="fp8", inputs=130, group=None, tokens=65),
    dataclasses.replace(SMALL, kind="int8", group=None, tokens=16, inputs=333),
    dataclasses.replace(SMALL, kind="int8", group=None, tokens=129, outputs=(129,), inputs=65),
    dataclasses.replace(SMALL, kind="int8", inputs=160, group=32, zeros=True),
    dataclasses.replace(SMALL, tokens=20, zeros=True, dtype=jnp.float32),
)
# The matrices of a model of 8 billion parameters (Llama 3): outputs and inputs.
LAYERS = {"qkv": (6144, 4096), "out": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}


@interpreted
@pytest.mark.usefixtures("triton_packages")
class TestTritonGpu(QuantizedMatmulContract):
    target = AMPERE
    backend = "triton_gpu"
    seeds = range(1)
    interpreter: Interpreter

    @pytest.fixture(autouse=True)
    def _given(self, interpreter: Interpreter, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interpreter = interpreter
        run = functools.partial(triton_gpu.quantized_matmul, run=interpreter.run)
        (backend,) = (backend for backend in OP.backends if backend.name == self.backend)
        monkeypatch.setattr(type(backend), "load", lambda _: run)

    def call(self, x: jax.Array, weight: QTensor) -> jax.Array:
        return quantized_matmul(x, weight, target=self.target, backend=self.backend)

    def test_it_serves_what_keeps_its_activations(self) -> None:
        """So that no test above takes a refusal for an answer."""
        for product in (*CONTRACT_PRODUCTS, *PRODUCTS):
            reason = self.refusal(*cases.build(product, np.random.default_rng(0)))
            small = product.kind == "int4" and product.group == 16
            served = product.activations is None and not small and product.kind != "mxfp4"
            assert (reason is None) == served, (product, reason)

    @pytest.mark.parametrize("product", PRODUCTS, ids=str)
    def test_what_the_contract_leaves_out(self, product: Product) -> None:
        self.check(*cases.build(product, np.random.default_rng(5)))
        self.check(*cases.build(product, np.random.default_rng(6), extreme=True))

    @pytest.mark.parametrize(
        ("kind", "group", "zeros"), [("int4", 128, True), ("int8", None, False), ("fp8", 128, False)]
    )
    def test_few_outputs_are_cut_into_parts(self, kind: Any, group: int | None, zeros: bool) -> None:
        """Inputs that the parts divide, and inputs that leave the last part less, or nothing."""
        for inputs in (2048, 1920):
            product = dataclasses.replace(SMALL, kind=kind, group=group, tokens=2, inputs=inputs, zeros=zeros)
            self.interpreter.launches.clear()
            self.check(*cases.build(product, np.random.default_rng(7)))
            (launch,) = self.interpreter.launches
            assert launch.constants["parts"] > 1


def plan_of(product: Product) -> TritonMatmulPlan:
    return TritonMatmulPlan(
        rows=product.tokens,
        outputs=int(np.prod(product.outputs)),
        inputs=product.inputs,
        groups=1 if product.group is None else product.inputs // product.group,
        kind=product.kind,
        has_zeros=product.zeros,
        dtype=np.dtype(product.dtype),
        compute_capability=80,
    )


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("kind", "group"), [("int4", 128), ("int4", 32), ("int4", None), ("int8", None), ("fp8", 128)])
@pytest.mark.parametrize("rows", [1, 2, 4, 8, 16])
def test_decode_moves_little_more_than_the_weights(name: str, kind: Any, group: int | None, rows: int) -> None:
    """No weight is read by two programs, and activations, outputs and the sums of parts are a twentieth at most."""
    outputs, inputs = LAYERS[name]
    product = Product(kind, tokens=rows, outputs=(outputs,), inputs=inputs, group=group, dtype=jnp.bfloat16)
    _, weight = _shapes(product)
    plan = plan_of(product)
    assert plan.weight_bytes == weight.nbytes
    assert plan.row_tiles == 1
    assert plan.moved(plan.parts) <= 1.05 * weight.nbytes
    assert plan.tiles * plan.parts >= 128, "a program for each of the multiprocessors"


@pytest.mark.parametrize("product", PRODUCTS, ids=str)
def test_the_plan_counts_the_bytes_of_the_weight(product: Product) -> None:
    x, weight = _shapes(dataclasses.replace(product, order=False))
    plan = plan_of(product)
    assert plan.weight_bytes == weight.nbytes
    assert plan.moved(1) == weight.nbytes + x.nbytes + 4 * product.tokens * plan.outputs
    assert plan.moved(3) == plan.moved(1) + 2 * 3 * 4 * product.tokens * plan.outputs


def _shapes(product: Product) -> tuple[Any, QTensor]:
    """What `cases.build` makes, as shapes: the bytes of a large weight without it."""
    few = dataclasses.replace(product, outputs=(1,))
    x, weight = cases.build(few, np.random.default_rng(0))
    tile = lambda a: jax.ShapeDtypeStruct((*product.outputs, a.shape[-1]), a.dtype)  # noqa: E731
    return x, jax.tree.map(tile, weight)


@pytest.mark.usefixtures("triton_packages")
@pytest.mark.parametrize(
    ("target", "change", "reason"),
    [
        (DeviceTarget("cpu", "cpu"), {}, "it runs on NVIDIA GPUs only"),
        (
            DeviceTarget("gpu", "NVIDIA T4", (7, 5)),
            {},
            "compute capability is (7, 5); it must be at least (8, 0), Ampere",
        ),
        (AMPERE, {"activations": "int8"}, "activations are rounded to int8; they must keep their type"),
        (
            AMPERE,
            {"group": 16},
            "groups are of 16 inputs; with int4 they must be a power of two from 32 on, or all",
        ),
        (
            AMPERE,
            {"kind": "int8", "group": 24, "inputs": 48},
            "groups are of 24 inputs; with int8 they must be a power of two from 16 on, or all",
        ),
        (AMPERE, {"kind": "fp8", "zeros": True}, "weights are fp8 with zero points; fp8 must have none"),
    ],
)
def test_what_it_does_not_serve_has_a_reason(target: DeviceTarget, change: dict[str, Any], reason: str) -> None:
    supports = {backend.name: backend.supports for backend in OP.backends}["triton_gpu"]
    rng = np.random.default_rng(0)
    assert supports(AMPERE, case_of(*cases.build(SMALL, rng))) is None
    assert supports(target, case_of(*cases.build(dataclasses.replace(SMALL, **change), rng))) == reason


@pytest.mark.usefixtures("triton_packages")
@pytest.mark.parametrize(
    ("capability", "change", "name"),
    [
        ((8, 0), {}, "triton_gpu"),
        ((8, 9), {"tokens": 512}, "triton_gpu"),
        ((10, 0), {}, "triton_gpu"),
        ((12, 1), {}, "triton_gpu"),
        ((9, 0), {}, "mosaic_gpu"),
        ((9, 0), {"outputs": (60,)}, "triton_gpu"),
        ((8, 0), {"tokens": 513}, "xla"),
        ((8, 0), {"dtype": jnp.float32}, "xla"),
        ((8, 0), {"kind": "int8", "group": None}, "xla"),
        ((8, 0), {"kind": "fp8"}, "xla"),
    ],
)
def test_int4_is_multiplied_by_it_where_there_is_no_kernel_for_the_card(
    capability: tuple[int, int], change: dict[str, Any], name: str
) -> None:
    target = DeviceTarget("gpu", "NVIDIA", capability)
    product = dataclasses.replace(SMALL, **{"outputs": (72,)} | change)
    case = case_of(*cases.build(product, np.random.default_rng(0)))
    assert select(OP, target, case).name == name
    assert select(OP, target, case, "triton_gpu").name == "triton_gpu"


def test_what_int4_costs_without_it_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    _, weight = cases.build(SMALL, np.random.default_rng(0))
    weight = dataclasses.replace(weight, target=AMPERE)
    other = dataclasses.replace(weight, target=DeviceTarget("cpu", "cpu"))
    monkeypatch.setattr(triton_support, "_is_installed", lambda package: False)
    text = cost_on_gpu([other, weight], jnp.bfloat16)
    assert text is not None
    assert "nine times their bytes in every step" in text
    assert text.endswith("but jax-triton is not installed: pip install jaxinfer[cuda13] (or cuda12)")
    assert cost_on_gpu([other], jnp.bfloat16) is None


@pytest.mark.usefixtures("triton_packages")
def test_nothing_is_said_of_what_a_kernel_multiplies() -> None:
    _, weight = cases.build(SMALL, np.random.default_rng(0))
    assert cost_on_gpu([dataclasses.replace(weight, target=AMPERE)], jnp.bfloat16) is None
