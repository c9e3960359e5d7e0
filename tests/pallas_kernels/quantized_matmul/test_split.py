"""A backend that runs on every device with its share of a weight: on virtual devices, with XLA in a kernel's place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxinfer.runtime.topology import collectives
from pallas_kernels.dispatch import Backend, DeviceTarget
from pallas_kernels.qtensor import QTensor, to_words
from pallas_kernels.quantized_matmul import QuantizedMatmulCase, api, quantized_matmul, reference
from tests.pallas_kernels.quantized_matmul import cases
from tests.pallas_kernels.quantized_matmul.cases import Product

CPU = DeviceTarget("cpu", "cpu")
SMALL = Product("int4", tokens=6, outputs=(2, 12), inputs=256, group=32, zeros=True)
seen: list[QuantizedMatmulCase] = []


def _supports(target: DeviceTarget, case: QuantizedMatmulCase) -> str | None:
    seen.append(case)
    return None


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    kernel = Backend("kernel", _supports, "pallas_kernels.quantized_matmul.xla:quantized_matmul")
    monkeypatch.setattr(api, "OP", dataclasses.replace(api.OP, backends=(kernel, *api.OP.backends)))
    seen.clear()
    mesh = jax.make_mesh((4,), ("tp",), devices=jax.devices()[:4], axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        yield mesh


def _placed(mesh: Mesh, weight: QTensor, split: P) -> QTensor:
    """As `jaxinfer.quantization` places it: an order goes to every device, and scales with their inputs."""
    whole, groups = (P(*axes) for axes in weight.axes_of_parts(split))

    def put(part: jax.Array | None, spec: P) -> jax.Array | None:
        return None if part is None else jax.device_put(part, NamedSharding(mesh, spec))

    values, scales = put(weight.values, whole), put(weight.scales, groups)
    assert values is not None
    assert scales is not None
    parts = {"values": values, "scales": scales, "zeros": put(weight.zeros, groups), "order": put(weight.order, P())}
    return dataclasses.replace(weight, **parts)


@pytest.mark.parametrize(
    ("split", "change", "outputs", "inputs"),
    [
        (P(None, "tp", None), {}, 6, 256),
        (P(None, None, "tp"), {}, 24, 64),
        (P(None, None, "tp"), {"group": None}, 24, 64),
        (P(None, None, "tp"), {"order": True}, 24, 64),
        (P(None, None, None), {}, 24, 256),
        (P(None, "tp", None), {"kind": "mxfp4", "zeros": False}, 6, 256),
        (P(None, None, "tp"), {"kind": "mxfp4", "zeros": False}, 24, 64),
    ],
    ids=str,
)
def test_each_device_multiplies_by_its_share(
    mesh: Mesh, split: P, change: dict[str, bool | None], outputs: int, inputs: int
) -> None:
    x, weight = cases.build(dataclasses.replace(SMALL, **change), np.random.default_rng(0))

    def run(x: jax.Array, weight: QTensor) -> jax.Array:
        return quantized_matmul(x, weight, target=CPU, backend="kernel", merge=False, split=split)

    placed = _placed(mesh, weight, split)
    compiled = jax.jit(run).lower(x, placed).compile()
    assert (seen[-1].num_outputs, seen[-1].num_inputs) == (outputs, inputs)
    assert set(collectives(compiled.as_text())) == ({"all-reduce"} if split[-1] is not None else set())
    want = reference.quantized_matmul(np.asarray(x), weight)
    np.testing.assert_allclose(np.asarray(compiled(x, placed)), want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("split", "first", "outputs", "inputs"),
    [
        (P(None, "tp", None, None), 1, 36, 256),
        (P("tp", None, None, None), 0, 36, 256),
        (P(None, None, None, "tp"), 0, 144, 64),
    ],
    ids=str,
)
@pytest.mark.parametrize("group", [32, None])
def test_a_weight_that_lies_as_words_is_split_too(
    mesh: Mesh, split: P, first: int, group: int | None, outputs: int, inputs: int
) -> None:
    """Over the first of the output axes that are one there, or between groups."""
    product = dataclasses.replace(SMALL, outputs=(4, 12, 3), group=group)
    x, weight = cases.build(product, np.random.default_rng(2))
    placed = _placed(mesh, to_words(weight, first), split)
    y = jax.jit(lambda x, weight: quantized_matmul(x, weight, target=CPU, backend="kernel", merge=False, split=split))(
        x, placed
    )
    assert (seen[-1].num_outputs, seen[-1].num_inputs, seen[-1].packed) == (outputs, inputs, True)
    want = reference.quantized_matmul(np.asarray(x), weight)
    np.testing.assert_allclose(np.asarray(y), want, atol=1e-5 * np.abs(want).max())


def test_a_caller_that_is_mapped_already_has_its_share(mesh: Mesh) -> None:
    x, weight = cases.build(dataclasses.replace(SMALL, zeros=False), np.random.default_rng(1))

    def share(x: jax.Array, values: jax.Array, scales: jax.Array) -> jax.Array:
        return quantized_matmul(x, QTensor(values, scales, kind="int4"), target=CPU, backend="kernel")

    specs = P(), P(None, "tp", None), P(None, "tp", None)
    run = jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=P(None, None, "tp"), check_vma=False)
    want = reference.quantized_matmul(np.asarray(x), weight)
    got = np.asarray(jax.jit(run)(x, weight.values, weight.scales))
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_a_split_that_does_not_fit_is_named(mesh: Mesh) -> None:
    x, weight = cases.build(SMALL, np.random.default_rng(0))
    for split, text in (
        (
            P(None, "dp"),
            "it must give for each of 3 axes of the weight None or one of the mesh's axes, 'tp'",
        ),
        (P(None, None, None, "tp"), "it must give for each of 3 axes"),
        (P("tp"), r"4 devices must divide each split axis of the weight \(2, 12, 256\), and its 8 groups"),
    ):
        with pytest.raises(ValueError, match=text):
            quantized_matmul(jnp.asarray(x), weight, target=CPU, split=split)
    with pytest.raises(ValueError, match="the last 1 output axes of the weight lie in one with others"):
        quantized_matmul(jnp.asarray(x), to_words(weight), target=CPU, split=P(None, "tp"))
