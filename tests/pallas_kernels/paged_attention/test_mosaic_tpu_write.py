"""What the TPU's kernel writes into pages against XLA's scatter, bit by bit; and no data race."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import layout, mosaic_tpu_write
from tests.pallas_kernels.interpreters import finding_races
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape

TARGET = DeviceTarget("tpu", "TPU v5 lite")
BASE = Shape(dtype=jnp.bfloat16, tokens=72, rows=4, page_size=64, pages_per_row=3, group=1, head_dim=128)
TYPES = [jnp.float32, jnp.bfloat16, jnp.int8, jnp.float8_e4m3fn]


def written(inputs: Inputs, mode: str = "on_wait") -> tuple[layout.Pages, layout.Pages]:
    """The kernel's pages. `mode`: see `test_mosaic_tpu.TpuContract`."""
    interpret = finding_races(pltpu.InterpretParams, dma_execution_mode=mode)
    run = jax.jit(functools.partial(mosaic_tpu_write.write_pages, interpret=interpret))
    pages = run(inputs.k_pages, inputs.v_pages, inputs.k, inputs.v, inputs.batch)
    jax.block_until_ready(pages)
    races = interpret_pallas_call.races  # a private name: nothing public tells
    assert races is None or not races.races_found
    pltpu.reset_tpu_interpret_mode_state()
    return pages


def check(shape: Shape, rows: cases.Rows, mode: str = "on_wait") -> None:
    """All pages, the null page too: padding goes nowhere."""
    inputs = cases.build(shape, TARGET, rows, np.random.default_rng(3))
    count = int(inputs.batch.query_start_loc[-1])
    slots = inputs.batch.slot_mapping[:count]
    pairs = (inputs.k_pages, inputs.k), (inputs.v_pages, inputs.v)
    wanted = [layout.write(pages, new[:count], slots, TARGET) for pages, new in pairs]
    for got, expected in zip(jax.tree.leaves(written(inputs, mode)), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_array_equal(_bits(got), _bits(expected))


def _bits(pages: Any) -> np.ndarray:
    array = np.asarray(pages)
    return array.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize])


# Alone in its tile, at a tile's last place, over the border of two pages, and into a page that is full after it.
ROWS = [(1, 38), (1, 64), (29, 77), (33, 192)]


@pytest.mark.parametrize(
    "dtype",
    [pytest.param(dtype, marks=() if dtype == jnp.int8 else pytest.mark.longer) for dtype in TYPES],
    ids=lambda dtype: np.dtype(dtype).name,
)
def test_writes_what_a_scatter_writes(dtype: Any) -> None:
    check(dataclasses.replace(BASE, kv_dtype=dtype), ROWS)


@pytest.mark.longer
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("mode", ["eager", "on_wait"])
def test_every_recipe_by_parts(dtype: Any, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for long steps, whose new keys and values do not stay on the chip."""
    monkeypatch.setattr(mosaic_tpu_write, "_RESIDENT_BYTES", 0)
    shape = dataclasses.replace(BASE, kv_dtype=dtype)
    for recipe in cases.RECIPES:
        check(shape, recipe(shape, np.random.default_rng(5)), mode)


@pytest.mark.longer
@pytest.mark.parametrize("page_size", [160, 256])
def test_pages_of_several_tiles_of_scales(page_size: int) -> None:
    shape = dataclasses.replace(BASE, kv_dtype=jnp.int8, page_size=page_size, pages_per_row=2, tokens=300)
    check(shape, [(200, page_size + 70), (1, 131), (40, 160)])


@pytest.mark.longer
def test_rows_of_two_tiles_of_lanes() -> None:
    check(dataclasses.replace(BASE, head_dim=256, kv_heads=1), ROWS)


@pytest.mark.longer
def test_more_rows_than_tiles_on_the_chip() -> None:
    shape = dataclasses.replace(BASE, tokens=40, rows=40, pages_per_row=1, kv_heads=3, page_size=32)
    check(shape, [(1, 1 + row % 32) for row in range(40)], "eager")


@pytest.mark.longer
def test_a_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that does not wait for tiles to be written before it uses their place again."""
    real = mosaic_tpu_write._copies_back

    class Unwaited:
        def __init__(self, copy: Any) -> None:
            self.start = copy.start

        def wait(self) -> None:
            """Forgets to."""

    monkeypatch.setattr(
        mosaic_tpu_write, "_copies_back", lambda *arguments: [Unwaited(copy) for copy in real(*arguments)]
    )
    with pytest.raises(AssertionError):
        test_more_rows_than_tiles_on_the_chip()
    pltpu.reset_tpu_interpret_mode_state()
