"""The grouped product for TPU: a Pallas kernel that reads each expert that has rows once, and no other one.

Legend: R rows, E experts, L output axes in front of the last one, N outputs of the last one, I inputs, W pieces of
work, A groups of inputs.

A piece of work is a tile of rows and an expert that has some of them (`mosaic_tpu_work.py`). The grid walks the pieces
of a tile of outputs in the order of their rows, and Pallas' pipeline copies a block of weights when the expert changes:
all inputs of a tile of outputs are one block, so it stays for all tiles of rows of its expert, and every weight of an
expert with rows leaves memory once, whatever the number of rows. While a piece is computed the next one's block is on
its way. A tile that several experts share is visited by each of them and stays on the chip meanwhile: each multiplies
all of its rows and keeps the sums of its own.

A row's sums are made of the same products in the same order whoever else is there: over all inputs, `unit` at a time,
in float32. What other rows hold, infinities too, never meets it.

bfloat16 weights are (E, *L, N, I), with inputs in the lanes: the right factor is transposed on its way into the matrix
unit. Where XLA lays them down with outputs in the lanes, they are read so (`TpuGroupedPlan.across`). int4 weights lie
as words (E, *L, I / 8, N), which `quantized_matmul/mosaic_tpu_words.py` takes apart; activations in float32 enter there
as three rows in bfloat16 that add up to one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.grouped_matmul.mosaic_tpu_plan import LANES, SUBLANES, TpuGroupedPlan, plan_of
from pallas_kernels.grouped_matmul.mosaic_tpu_work import Work, list_work
from pallas_kernels.qtensor import NUMBERS_OF_A_WORD, QTensor
from pallas_kernels.quantized_matmul.mosaic_tpu_words import WordsForm, add_products, shifts_of, three_bfloat16


@functools.partial(jax.jit, static_argnames=("target", "interpret"))
def grouped_matmul(
    x: jax.Array, weight: jax.Array | QTensor, group_sizes: jax.Array, *, target: DeviceTarget, interpret: Any = False
) -> jax.Array:
    """See `api.grouped_matmul`. Jitted so that a model's equal layers are traced and lowered once.

    Args:
        weight: bfloat16 (E, *O, I), or in words of int4.
        interpret: a `pltpu.InterpretParams` runs the kernel on the CPU.
    """
    num_rows = x.shape[0]
    outputs = weight.outputs[1:] if isinstance(weight, QTensor) else weight.shape[1:-1]
    copies = 3 if x.dtype == jnp.float32 else 1
    if copies == 3:
        x = jnp.stack(three_bfloat16(x), axis=1).reshape(3 * num_rows, -1)
        group_sizes = 3 * group_sizes
    parts = parts_of(weight)
    plan = plan_for(copies * num_rows, weight, parts[0].shape, target)
    if plan.across:
        parts = [jnp.swapaxes(parts[0], -1, -2)]
    if plan.scales != "matrix":
        parts[1] = _scales_abreast(plan, parts[1])
    padding = (plan.padded_rows - x.shape[0], plan.padded_inputs - x.shape[1])
    sums = _launch(plan, list_work(plan, group_sizes), jnp.pad(x, [(0, size) for size in padding]), parts, interpret)
    sums = sums[:, : plan.rows]
    if copies == 3:
        sums = jnp.sum(sums.reshape(plan.leading, num_rows, 3, -1), axis=2)
    return sums.transpose(1, 0, 2).reshape(num_rows, *outputs)


def parts_of(weight: jax.Array | QTensor) -> list[jax.Array]:
    """The weight's arrays with one axis L: values, and of words scales and zero points, (E, L, .., ..)."""
    if isinstance(weight, QTensor):
        given = (weight.values, weight.scales, weight.zeros)
        return [part.reshape(part.shape[0], -1, *part.shape[-2:]) for part in given if part is not None]
    return [weight.reshape(weight.shape[0], -1, *weight.shape[-2:])]


def _scales_abreast(plan: TpuGroupedPlan, scales: jax.Array) -> jax.Array:
    """Scales (E, L, A, N) in the order in which XLA keeps them, so that no byte moves: (L, A, E, N), and where those
    are whole tiles, (L, A, E / 8, N / 128, 8, 1, 128)."""
    scales = scales.transpose(1, 2, 0, 3)
    if plan.scales == "eights":
        return scales
    tiles = scales.reshape(*scales.shape[:2], plan.experts // SUBLANES, SUBLANES, plan.outputs // LANES, LANES)
    return tiles.swapaxes(3, 4)[..., None, :]


def plan_for(rows: int, weight: jax.Array | QTensor, shape: tuple[int, ...], target: DeviceTarget) -> TpuGroupedPlan:
    """The plan for a weight whose values are of `shape` (E, L, .., ..); `api.py` has found that it fits the chip."""
    if isinstance(weight, QTensor):
        sizes = (weight.values.shape[-1], weight.inputs, weight.group, weight.zeros is not None)
    else:
        sizes = (*shape[2:], None, False)
    return plan_of(rows, *shape[:2], *sizes, target.device_kind)


def block_specs(plan: TpuGroupedPlan) -> list[pl.BlockSpec]:
    """Of the activations, the weight, of words scales and zero points if there are any, and the sums."""

    def index(place: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        return lambda lead, n, item, *work: place(lead, n, item, Work(*work))

    activations = pl.BlockSpec(
        (plan.tile_rows, plan.padded_inputs), index(lambda lead, n, item, work: (work.tile[item], 0))
    )
    matrices = index(lambda lead, n, item, work: (work.expert[item], lead, 0, n))
    if plan.group is None:
        weights = [pl.BlockSpec((None, None, plan.inputs, plan.tile_outputs), matrices)]
        if not plan.across:
            rows = index(lambda lead, n, item, work: (work.expert[item], lead, n, 0))
            weights = [pl.BlockSpec((None, None, plan.tile_outputs, plan.inputs), rows)]
    else:
        words = pl.BlockSpec((None, None, plan.padded_inputs // NUMBERS_OF_A_WORD, plan.tile_outputs), matrices)
        scales = pl.BlockSpec((None, None, plan.groups, plan.tile_outputs), matrices)
        if plan.scales == "eights":
            eights = index(lambda lead, n, item, work: (lead, 0, work.expert[item] // SUBLANES, n))
            scales = pl.BlockSpec((None, plan.groups, SUBLANES, plan.tile_outputs), eights)
        elif plan.scales == "rows":

            def row(lead: Any, n: Any, item: Any, work: Work) -> tuple[Any, ...]:
                return lead, 0, work.expert[item] // SUBLANES, n, work.expert[item] % SUBLANES, 0, 0

            shape = (None, plan.groups, None, plan.tile_outputs // LANES, None, 1, LANES)
            scales = pl.BlockSpec(shape, index(row))
        weights = [words, scales, *[scales] * plan.zeros]
    sums = pl.BlockSpec(
        (None, plan.tile_rows, plan.tile_outputs), index(lambda lead, n, item, work: (lead, work.tile[item], n))
    )
    return [activations, *weights, sums]


def _launch(plan: TpuGroupedPlan, work: Work, x: jax.Array, parts: list[jax.Array], interpret: Any) -> jax.Array:
    """The kernel over its grid: (L, R, N) float32, R padded to whole rows of tiles."""
    *in_specs, out_spec = block_specs(plan)
    touched = sum(part.size * part.dtype.itemsize for part in parts) * min(plan.experts, plan.rows) // plan.experts
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct((plan.leading, plan.padded_rows, plan.outputs), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(work),
            grid=plan.grid,
            in_specs=in_specs,
            out_specs=out_spec,
            scratch_shapes=[
                pltpu.VMEM((plan.tile_rows, plan.tile_outputs), jnp.float32),
                *[pltpu.VMEM((plan.groups, plan.tile_outputs), jnp.float32) for _ in range(plan.zeros)],
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"), vmem_limit_bytes=plan.vmem_limit
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * plan.rows * plan.leading * plan.outputs * plan.inputs,
            bytes_accessed=touched + x.nbytes + 4 * plan.padded_rows * plan.leading * plan.outputs,
            transcendentals=0,
        ),
        interpret=interpret,
        name="grouped_matmul",
    )(*work, x, *parts)


def _kernel(*refs: Any, plan: TpuGroupedPlan) -> None:
    """One piece of work: the sums of its rows, in a tile that stays on the chip until the next tile's pieces."""
    work, refs = Work(*refs[: len(Work._fields)]), refs[len(Work._fields) :]
    x_ref, *weight_refs, out_ref, sums_ref = refs[: len(refs) - plan.zeros]
    item = pl.program_id(2)
    begin, end = work.begin[item], work.end[item]

    @pl.when((item == 0) | (work.tile[item] != work.tile[jnp.maximum(item - 1, 0)]))
    def _() -> None:
        out_ref[...] = jnp.zeros_like(out_ref)

    @pl.when(begin < end)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)
        if plan.group is None:
            _add_plain_products(plan, x_ref, weight_refs[0], sums_ref)
        else:
            _add_words_products(plan, work.expert[item], x_ref, weight_refs, sums_ref, refs[-1])
        row = lax.broadcasted_iota(jnp.int32, out_ref.shape, 0)
        out_ref[...] = jnp.where((row >= begin) & (row < end), sums_ref[...], out_ref[...])


def _add_words_products(
    plan: TpuGroupedPlan, expert: Any, x_ref: Any, weight_refs: list[Any], sums_ref: Any, shifts_ref: Any
) -> None:
    """Adds x (R, I) times the weights in words, in the order of the inputs. shifts_ref: scratch, for zero points."""
    assert plan.group is not None
    words_ref, scales_ref, *zeros_ref = weight_refs
    if plan.zeros:  # bytes have no single rows on the chip
        shifts_ref[...] = shifts_of(zeros_ref[0])

    def scales(group: Any) -> jax.Array:
        if plan.scales == "eights":
            return scales_ref[group, pl.ds(expert % SUBLANES, 1), :]
        if plan.scales == "rows":
            return jnp.concatenate([scales_ref[group, row] for row in range(plan.tile_outputs // LANES)], axis=1)
        return scales_ref[pl.ds(group, 1), :]

    form = WordsForm(plan.tile_rows, plan.inputs, plan.group, plan.zeros)
    units = plan.padded_inputs // form.unit
    add_products(form, x_ref, (words_ref, scales, shifts_ref), sums_ref, units=units)


def _add_plain_products(plan: TpuGroupedPlan, x_ref: Any, weights_ref: Any, sums_ref: Any) -> None:
    """Adds x (R, I) times the weights (N, I), or (I, N), both bfloat16, in the order of the inputs."""

    def add(inputs: Any) -> None:
        sums_ref[...] += lax.dot_general(
            x_ref[:, inputs],
            weights_ref[inputs, :] if plan.across else weights_ref[:, inputs],
            (((1,), (0 if plan.across else 1,)), ((), ())),
            precision=lax.Precision.DEFAULT,
            preferred_element_type=jnp.float32,
        )

    whole = plan.inputs // plan.unit

    def one_unit(unit: Any, carry: None) -> None:
        add(pl.ds(pl.multiple_of(unit * plan.unit, plan.unit), plan.unit))

    lax.fori_loop(0, whole, one_unit, None)
    if plan.inputs % plan.unit:
        add(pl.ds(whole * plan.unit, plan.inputs % plan.unit))
