"""The quantized product for TPU and weights in int4: a Pallas kernel that takes packed words apart on the chip.

Legend: T tokens, L leading output axes, N outputs that lie in the lanes, I inputs.

Why it exists: what XLA makes of an int4 weight depends on the generation and on how the weight lies, and in no one form
is it near the bytes of the packed weight on all five (docs/tpu.md has the compiler's figures). Here every byte of the
weight leaves memory once for each tile of tokens, and nothing wide is ever written to memory.

How words are taken apart and multiplied by, `mosaic_tpu_words.py` says.

bfloat16 activations enter as they are. Those in float32 enter as three bfloat16 numbers that add up to them, as more
tokens: numbers of 4 bits are exact in bfloat16, so nothing is rounded but the sums.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.qtensor import NUMBERS_OF_A_WORD, QTensor
from pallas_kernels.quantized_matmul.mosaic_tpu_words import (
    ROWS_OF_A_TILE,
    WordsForm,
    add_products,
    shifts_of,
    three_bfloat16,
)
from pallas_kernels.rounding import round_up

_LANES = 128
_TILE_TOKENS = 256
_TILE_SCALES = 512 * 256  # half a MiB, and with zero points three times that; most tiles have 512 outputs
_TILE_INPUTS = 4096  # with 512 outputs a block of words has 1 MiB, and there are two of them
_RESIDENT_BYTES = 2 << 20  # activations up to this size stay on the chip for a whole tile of tokens


@dataclasses.dataclass(frozen=True)
class TpuMatmulPlan:
    """Everything static about a launch."""

    tokens: int  # T, padded to whole rows of tiles
    leading: int  # product of L
    outputs: int  # N
    inputs: int  # I
    group: int
    zeros: bool
    tile_tokens: int
    tile_outputs: int
    tile_inputs: int
    resident: bool  # all inputs of a tile of tokens are one block

    @property
    def form(self) -> WordsForm:
        return WordsForm(self.tile_tokens, self.inputs, self.group, self.zeros)

    @property
    def grid(self) -> tuple[int, int, int, int]:
        """Tiles of tokens, leading outputs, tiles of outputs, tiles of inputs. Only the last one is summed over."""
        tiles = (self.tokens // self.tile_tokens, -(-self.outputs // self.tile_outputs))
        return tiles[0], self.leading, tiles[1], -(-self.inputs // self.tile_inputs)

    @property
    def weight_bytes(self) -> int:
        """What the grid's blocks of words, scales and zero points are in memory, as often as they are copied."""
        tokens, leading, outputs, inputs = self.grid
        words = inputs * self.tile_inputs * self.tile_outputs // 2
        scales = self.form.groups * self.tile_outputs * (5 if self.zeros else 4)
        return tokens * leading * outputs * (words + scales)

    @property
    def bytes(self) -> int:
        """All that the grid's blocks are in memory."""
        _, leading, outputs, inputs = self.grid
        times = 1 if self.resident else leading * outputs
        activations = 2 * self.tokens * self.tile_inputs * inputs * times
        return self.weight_bytes + activations + 4 * self.tokens * leading * outputs * self.tile_outputs


def plan_of(tokens: int, leading: int, outputs: int, inputs: int, group: int, zeros: bool) -> TpuMatmulPlan:
    """Tiles of about the same size that cover each axis."""
    tokens = round_up(tokens, ROWS_OF_A_TILE)
    # Groups that share lanes multiply the rows of a product, and many groups the scales of a tile of outputs.
    tile_tokens = _even_tile(tokens, _TILE_TOKENS // max(1, _LANES // group), ROWS_OF_A_TILE)
    most_outputs = next((size for size in (512, 256) if size * inputs // group <= _TILE_SCALES), _LANES)
    tile_inputs = _even_tile(inputs, _TILE_INPUTS, max(_LANES, math.gcd(group, 512)))
    return TpuMatmulPlan(
        tokens=round_up(tokens, tile_tokens),
        leading=leading,
        outputs=outputs,
        inputs=inputs,
        group=group,
        zeros=zeros,
        tile_tokens=tile_tokens,
        tile_outputs=outputs if outputs < _LANES else _even_tile(outputs, most_outputs, _LANES),
        tile_inputs=tile_inputs,
        resident=2 * tile_tokens * inputs <= _RESIDENT_BYTES,
    )


@functools.partial(jax.jit, static_argnames=("target", "merge", "interpret"))
def quantized_matmul(
    x: jax.Array, weight: QTensor, *, target: DeviceTarget, merge: bool, interpret: Any = False
) -> jax.Array:
    """See `api.quantized_matmul`. Jitted so that a model's equal layers are traced and lowered once.

    Args:
        interpret: a `pltpu.InterpretParams` runs the kernel on the CPU.
    """
    del target, merge  # a device's own share has no split axis, and the outputs are merged as far as they can be
    num_tokens = x.shape[0]
    rows = jnp.concatenate(three_bfloat16(x)) if x.dtype == jnp.float32 else x
    sizes = (weight.values.shape[-1], weight.inputs, weight.group)
    plan = plan_of(rows.shape[0], math.prod(weight.values.shape[:-2]), *sizes, weight.zeros is not None)
    parts = [
        part.reshape(plan.leading, *part.shape[-2:])
        for part in (weight.values, weight.scales, weight.zeros)
        if part is not None
    ]
    _, _, _, input_tiles = plan.grid
    padding = (plan.tokens - rows.shape[0], input_tiles * plan.tile_inputs - plan.inputs)
    sums = _launch(plan, jnp.pad(rows, [(0, size) for size in padding]), parts, interpret)  # (L, T, N)
    if x.dtype == jnp.float32:
        sums = jnp.sum(sums[:, : 3 * num_tokens].reshape(plan.leading, 3, num_tokens, -1), axis=1)
    return sums[:, :num_tokens].transpose(1, 0, 2).reshape(num_tokens, *weight.outputs)


def block_specs(plan: TpuMatmulPlan) -> list[pl.BlockSpec]:
    """Of the activations, words, scales, zero points if there are any, and sums."""
    width = plan.grid[3] * plan.tile_inputs if plan.resident else plan.tile_inputs
    activations = pl.BlockSpec((plan.tile_tokens, width), lambda t, lead, n, k: (t, 0) if plan.resident else (t, k))
    words = pl.BlockSpec(
        (None, plan.tile_inputs // NUMBERS_OF_A_WORD, plan.tile_outputs), lambda t, lead, n, k: (lead, k, n)
    )
    scales = pl.BlockSpec((None, plan.form.groups, plan.tile_outputs), lambda t, lead, n, k: (lead, 0, n))
    sums = pl.BlockSpec((None, plan.tile_tokens, plan.tile_outputs), lambda t, lead, n, k: (lead, t, n))
    return [activations, words, *[scales] * (2 if plan.zeros else 1), sums]


def _launch(plan: TpuMatmulPlan, x: jax.Array, parts: list[jax.Array], interpret: Any) -> jax.Array:
    """The kernel over its grid: (L, T, N) float32."""
    *in_specs, out_spec = block_specs(plan)
    return pl.pallas_call(
        functools.partial(_kernel, plan=plan),
        out_shape=jax.ShapeDtypeStruct((plan.leading, plan.tokens, plan.outputs), jnp.float32),
        grid=plan.grid,
        in_specs=in_specs,
        out_specs=out_spec,
        scratch_shapes=[pltpu.VMEM((plan.form.groups, plan.tile_outputs), jnp.float32)] * plan.zeros,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
        cost_estimate=pl.CostEstimate(
            flops=2 * plan.tokens * plan.leading * plan.outputs * plan.inputs,
            bytes_accessed=plan.bytes,
            transcendentals=0,
        ),
        interpret=interpret,
        name="quantized_matmul",
    )(x, *parts)


def _kernel(x_ref: Any, words_ref: Any, scales_ref: Any, *refs: Any, plan: TpuMatmulPlan) -> None:
    """One tile of inputs: adds its part to a tile of outputs, which stays on the chip meanwhile."""
    zeros_ref, out_ref, shifts_ref = refs if plan.zeros else (None, refs[0], None)
    tile = pl.program_id(3)

    @pl.when(tile == 0)
    def _() -> None:
        out_ref[...] = jnp.zeros_like(out_ref)
        if plan.zeros:  # bytes have no single rows on the chip
            shifts_ref[...] = shifts_of(zeros_ref)

    first = tile * plan.tile_inputs
    add_products(
        plan.form,
        x_ref,
        (words_ref, lambda group: scales_ref[pl.ds(group, 1), :], shifts_ref),
        out_ref,
        units=plan.tile_inputs // plan.form.unit,
        first=first,
        place=first if plan.resident else 0,
    )


def _even_tile(size: int, most: int, multiple: int) -> int:
    """The smallest tile that covers `size` in as few tiles as `most` does."""
    return round_up(-(-size // -(-size // most)), multiple)
