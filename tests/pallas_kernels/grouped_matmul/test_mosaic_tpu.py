"""The TPU kernel in Pallas' TPU interpreter: the contract, with both ways of running copies, and no data race; its list
of work, and the bytes that its grid copies.

The kernel starts no copy of its own: Pallas' pipeline does. So there is no wait to leave out here.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget, Unsupported
from pallas_kernels.grouped_matmul import grouped_matmul, mosaic_tpu, mosaic_tpu_plan
from pallas_kernels.grouped_matmul.mosaic_tpu_plan import TpuGroupedPlan, plan_of
from pallas_kernels.grouped_matmul.mosaic_tpu_work import Work, list_work
from pallas_kernels.grouped_matmul.reference import grouped_matmul as reference
from pallas_kernels.qtensor import QTensor, quantize, to_words
from pallas_kernels.rounding import round_up
from tests.pallas_kernels.grouped_matmul.contract import TOLERANCE, Grouped, GroupedMatmulContract
from tests.pallas_kernels.interpreters import finding_races

TPU = DeviceTarget("tpu", "TPU v5 lite")
BFLOAT16: Any = jnp.bfloat16

# Beside the contract's: several tiles of rows, inputs that fill no product, outputs in the lanes, scales of 8 experts
# abreast and rows of them, groups that share lanes, zero points, activations in float32.
CASES = (
    Grouped((100, 0, 100, 27), padding=73, outputs=(2, 80), inputs=600, dtype=BFLOAT16),
    Grouped((16, 0, 17, 3), outputs=(128,), inputs=72, dtype=BFLOAT16),
    Grouped((5, 0, 9, 2, 0, 0, 1, 1, 0, 3, 2), outputs=(160,), inputs=192, kind="int4", group=64, dtype=BFLOAT16),
    Grouped((5, 0, 9, 2, 0, 1, 0, 1), outputs=(2, 128), inputs=192, kind="int4", group=64, dtype=BFLOAT16),
    Grouped((3, 0, 2), outputs=(2, 40), inputs=512, kind="int4", group=32),
)


class TpuContract(GroupedMatmulContract):
    """`mode`: "eager" runs a copy when it starts, "on_wait" when it is waited for."""

    target = TPU  # type: ignore[assignment]
    backend = "mosaic_tpu"
    mode: str

    def call(self, x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array) -> jax.Array:
        return _interpreted(self.mode, x, weight, sizes)

    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_other_sizes(self, case: Grouped) -> None:
        assert self.refusal(case) is None
        x, weight, sizes = case.arrays(self.target)
        _check(self.call(x, weight, sizes), x, weight, sizes)


@pytest.mark.longer
class TestEagerCopies(TpuContract):
    mode = "eager"


@pytest.mark.longer
class TestCopiesOnWait(TpuContract):
    mode = "on_wait"


def _interpreted(mode: str, x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array) -> jax.Array:
    y = _jitted(mode)(x, weight, sizes)
    jax.block_until_ready(y)
    races = interpret_pallas_call.races  # a private name: nothing public tells
    assert races is None or not races.races_found
    pltpu.reset_tpu_interpret_mode_state()
    return y


@functools.lru_cache
def _jitted(mode: str) -> Any:
    interpret = finding_races(pltpu.InterpretParams, dma_execution_mode=mode)
    return jax.jit(functools.partial(mosaic_tpu.grouped_matmul, target=TPU, interpret=interpret))


def _check(got: jax.Array, x: jax.Array, weight: jax.Array | QTensor, sizes: jax.Array) -> None:
    want = reference(np.asarray(x), weight, np.asarray(sizes))
    atol = TOLERANCE[np.dtype(x.dtype)] * np.abs(want).max()
    np.testing.assert_allclose(np.asarray(got), want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "case",
    [
        Grouped((9, 0, 8), padding=3, outputs=(24,), inputs=96, dtype=BFLOAT16),
        Grouped((1, 0, 2), padding=2, outputs=(24,), inputs=64, kind="int4", group=64, dtype=BFLOAT16),
    ],
    ids=str,
)
def test_in_short(case: Grouped) -> None:
    x, weight, sizes = case.arrays(TPU)
    _check(_interpreted("eager", x, weight, sizes), x, weight, sizes)


@pytest.mark.longer
def test_several_tiles_of_outputs_and_zero_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mosaic_tpu_plan, "_TILE_OUTPUTS", 128)
    monkeypatch.setattr(mosaic_tpu_plan, "_LONGEST_TILE_OUTPUTS", 128)
    rng = np.random.default_rng(3)
    wide = jnp.asarray(rng.standard_normal((3, 2, 200, 512)), jnp.float32)
    x = jnp.asarray(rng.standard_normal((40, 512)), BFLOAT16)
    sizes = jnp.array([17, 0, 20], jnp.int32)
    pairs = quantize(wide, "int4", 64)
    zeros = jnp.asarray(rng.integers(0, 16, pairs.scales.shape), jnp.uint8)
    words = to_words(dataclasses.replace(pairs, zeros=zeros), 2)  # as with outputs that are split over devices
    for weight in (wide.astype(BFLOAT16), words):
        _forget_traces()
        _check(_interpreted("on_wait", x, weight, sizes), x, weight, sizes)
    _forget_traces()


def _forget_traces() -> None:
    """The op is jitted: a traced kernel would be used again."""
    _jitted.cache_clear()
    mosaic_tpu.grouped_matmul.clear_cache()


@pytest.mark.longer
def test_what_others_hold_does_not_matter() -> None:
    """NaN in the weights of experts without rows, and infinities in other experts' rows: the same bits."""
    case = Grouped((9, 0, 8), padding=3, outputs=(2, 24), inputs=96, dtype=BFLOAT16)
    x, weight, sizes = case.arrays(TPU)
    assert not isinstance(weight, QTensor)
    want = np.asarray(_interpreted("eager", x, weight, sizes))
    got = np.asarray(_interpreted("eager", x.at[:9].set(jnp.inf), weight.at[1].set(jnp.nan), sizes))
    np.testing.assert_array_equal(got[9:], want[9:])


def test_the_list_of_work_names_every_row_once() -> None:
    rng = np.random.default_rng(0)
    for rows, experts in ((1, 4), (16, 4), (300, 3), (300, 40), (1000, 128)):
        plan = plan_of(rows, experts, 1, 128, 128, None, False, TPU.device_kind)
        for share in (0.0, 0.3, 1.0):
            chosen = rng.choice(experts, size=max(1, experts // 3))
            sizes = np.bincount(rng.choice(chosen, size=int(rows * share)), minlength=experts)
            _check_work(plan, sizes, _listed(plan, sizes))


def _listed(plan: TpuGroupedPlan, sizes: np.ndarray) -> Work:
    """The list of work. Plans that differ in what it does not look at share what is compiled."""
    plan = dataclasses.replace(
        plan, leading=1, outputs=1, inputs=1, group=None, across=False, tile_outputs=1, vmem_limit=None
    )
    return Work(*map(np.asarray, _lister(plan)(jnp.asarray(sizes, jnp.int32))))


@functools.lru_cache
def _lister(plan: TpuGroupedPlan) -> Any:
    return jax.jit(functools.partial(list_work, plan))


def _check_work(plan: TpuGroupedPlan, sizes: np.ndarray, work: Work) -> None:
    found = np.full(plan.row_tiles * plan.tile_rows, -1)
    for expert, tile, begin, end in zip(*work, strict=True):
        rows = tile * plan.tile_rows + np.arange(begin, end)
        assert (found[rows] == -1).all()
        found[rows] = expert
    np.testing.assert_array_equal(found[: sizes.sum()], np.repeat(np.arange(len(sizes)), sizes))
    assert (found[sizes.sum() :] == -1).all()
    np.testing.assert_array_equal(np.unique(work.tile), np.arange(plan.row_tiles))
    assert (np.diff(work.tile) >= 0).all()
    assert (np.diff(work.expert) >= 0).all()  # so each is read once
    assert (sizes[work.expert] > 0).all() or not sizes.any()


def test_the_list_of_work_fits_scalar_memory() -> None:
    """8,192 rows, thrice for float32, of 128 experts; a v6e has 1 MiB for everything."""
    for group in (None, 128, 16):
        for device_kind in ("TPU v4", "TPU v6 lite"):
            plan = plan_of(3 * 8192, 128, 2, 768, 2048, group, False, device_kind)
            assert 4 * len(Work._fields) * plan.items <= 16 << 10, plan


MODELS = {
    "Qwen3-30B-A3B, gate and up": (128, 2, 768, 2048),
    "Qwen3-30B-A3B, down": (128, 1, 2048, 768),
    "gpt-oss-20b, gate and up": (32, 2, 2880, 2880),
    "gpt-oss-20b, down": (32, 1, 2880, 2880),
    "Mixtral-8x7B, gate and up": (8, 2, 14336, 4096),
    "Mixtral-8x7B, down": (8, 1, 4096, 14336),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("device_kind", ["TPU v4", "TPU v6 lite"])
def test_weights_of_touched_experts_are_copied_once(model: str, device_kind: str) -> None:
    """Blocks of every step of the grid: no more than a twentieth over the weights of the experts that have rows."""
    experts, leading, outputs, inputs = MODELS[model]
    rng = np.random.default_rng(1)
    for rows, group in itertools.product((8, 64, 700), (None, 128 if inputs % 128 == 0 else 64)):
        sizes = np.bincount(rng.choice(experts, size=rows), minlength=experts)
        plan = plan_of(rows, experts, leading, outputs, inputs, group, False, device_kind)
        copied = _copied(plan, _listed(plan, sizes))
        touched = (sizes > 0).sum() * leading * outputs
        weight = touched * inputs * 2 if group is None else touched * (inputs // 2 + 4 * inputs // group)
        if plan.scales == "eights":  # scales come for 8 experts at a time, each 8 once
            eights = len({expert // 8 for expert in np.flatnonzero(sizes)})
            assert copied[2] <= 1.05 * 8 * eights * leading * outputs * 4 * plan.groups
            copied, weight = copied[:2], touched * inputs // 2
        assert weight <= sum(copied[1:]) <= 1.05 * weight, (plan, sum(copied[1:]) / weight)


def _copied(plan: TpuGroupedPlan, work: Work) -> list[int]:
    """Bytes of each operand that Pallas' pipeline moves: a block, whenever it is another one.

    Of a block over the edge of its array the part inside is copied, to whole tiles of 8 x 128 (`get_dma_slice` of
    jax/_src/pallas/mosaic/pipeline.py)."""
    words = (plan.experts, plan.leading, plan.inputs // 8, plan.outputs)
    plain = (plan.experts, plan.leading, plan.outputs, plan.inputs)
    arrays: list[tuple[tuple[int, ...], int]] = [((plan.padded_rows, plan.padded_inputs), 2)]
    if plan.group is None:
        arrays += [((*plain[:2], plain[3], plain[2]) if plan.across else plain, 2)]
    else:
        scales = {
            "matrix": (plan.experts, plan.leading, plan.groups, plan.outputs),
            "rows": (plan.leading, plan.groups, plan.experts // 8, plan.outputs // 128, 8, 1, 128),
            "eights": (plan.leading, plan.groups, plan.experts, plan.outputs),
        }
        arrays += [(words, 4), (scales[plan.scales], 4)]
    moved = []
    for (shape, size), spec in zip(arrays, mosaic_tpu.block_specs(plan)[:-1], strict=True):
        last, total = None, 0
        for step in itertools.product(*map(range, plan.grid)):
            place = tuple(int(index) for index in spec.index_map(*step, *work))
            if place != last:
                total += size * _inside(spec.block_shape, place, shape)
            last = place
        moved.append(total)
    return moved


def _inside(block: tuple[int | None, ...], place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """How many numbers of a block, in whole tiles, are in an array of `shape`."""
    tiles = (1,) * (len(shape) - 2) + (1 if shape[-2] == 1 else 8, 128)
    lengths = [
        round_up(min(length, whole - index * length), tile)
        for length, index, whole, tile in zip([b or 1 for b in block], place, shape, tiles, strict=True)
    ]
    return int(np.prod(lengths))


def test_what_it_does_not_serve_is_named() -> None:
    def refused(message: str, x: Any, weight: Any, sizes: Any, target: DeviceTarget = TPU) -> None:
        with pytest.raises(Unsupported, match=message):
            grouped_matmul(x, weight, sizes, target=target, backend="mosaic_tpu")

    x, weight, sizes = _abstract(Grouped())
    refused("it runs on TPU only", x, weight, sizes, DeviceTarget("gpu", "NVIDIA H200", (9, 0)))
    refused("weights are float32; they must be bfloat16", x, weight, sizes)
    refused("int8 in groups of 96, does not lie as words", *_abstract(Grouped(kind="int8")))
    long = Grouped(outputs=(8,), inputs=30000, dtype=BFLOAT16)
    v4 = DeviceTarget("tpu", "TPU v4")
    refused(r"30000 inputs, of which a tile takes 1\d.\d MiB of VMEM; on TPU v4 .* 12", *_abstract(long), v4)

    x, words, sizes = _abstract(Grouped((1,) * 8, inputs=192, kind="int4", group=64))
    refused("rounded to int8", x, dataclasses.replace(words, activations="int8"), sizes)
    zeros = jax.ShapeDtypeStruct(words.scales.shape, jnp.uint8)
    refused("3 groups with zero points", x, dataclasses.replace(words, zeros=zeros), sizes)
    wider = jax.ShapeDtypeStruct((8, 2, 48), jnp.float32)
    refused("groups are of 96 inputs", x, dataclasses.replace(words, scales=wider), sizes)


def test_experts_among_the_outputs_are_refused() -> None:
    x, words, _ = _abstract(Grouped((1,) * 8, inputs=192, kind="int4", group=64))
    values, scales = (jax.ShapeDtypeStruct((rows, 8 * 48), kind) for rows, kind in ((24, jnp.int32), (3, jnp.float32)))
    merged = dataclasses.replace(words, values=values, scales=scales, packed_outputs=(2, 24))
    with pytest.raises(ValueError, match="with its experts among the outputs"):
        grouped_matmul(x, merged, jnp.ones(8, jnp.int32), target=TPU)


def _abstract(case: Grouped) -> Any:
    return jax.eval_shape(lambda: case.arrays(TPU))
