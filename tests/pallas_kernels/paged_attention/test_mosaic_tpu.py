"""The TPU kernel in Pallas' TPU interpreter: the contract, with both ways of running its copies, and no data race."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention import AttentionOptions, mosaic_tpu, mosaic_tpu_kernel
from pallas_kernels.paged_attention.head_packing import with_packed_heads
from tests.pallas_kernels.interpreters import finding_races
from tests.pallas_kernels.paged_attention import cases
from tests.pallas_kernels.paged_attention.cases import Inputs, Shape
from tests.pallas_kernels.paged_attention.contract import SHAPES, PagedAttentionContract, options_of


class TpuContract(PagedAttentionContract):
    """`mode`: "eager" runs a copy when it starts and finds reads that do not wait as races; "on_wait" runs it when it
    is waited for, so that such a read finds NaN."""

    target = DeviceTarget("tpu", "TPU v5 lite")
    backend = "mosaic_tpu"
    seeds = range(1)
    mode: str

    def call(self, inputs: Inputs, shape: Shape) -> tuple[Any, Any, Any]:
        out = _interpreted(shape, self.target, self.mode)(*inputs.args, inputs.sinks)
        jax.block_until_ready(out)
        races = interpret_pallas_call.races  # a private name: nothing public tells
        assert races is None or not races.races_found
        pltpu.reset_tpu_interpret_mode_state()
        return out


@pytest.mark.slow  # CI runs it in a step of its own, and one batch of one shape everywhere
class TestEagerCopies(TpuContract):
    mode = "eager"


@pytest.mark.parametrize("shape", [SHAPES[10]], ids=str)
def test_in_short(shape: Shape) -> None:
    contract, rng = TestEagerCopies(), np.random.default_rng(4)
    contract.check(cases.build(shape, contract.target, cases.ragged_mix(shape, rng), rng), shape)


@pytest.mark.slow
class TestCopiesOnWait(TpuContract):
    mode = "on_wait"
    seeds = range(1, 2)
    recipes = (cases.ragged_mix, cases.page_borders, cases.idle)  # the detector of races has seen them all


@functools.lru_cache
def _interpreted(shape: Shape, target: DeviceTarget, mode: str) -> Any:
    run = functools.partial(
        mosaic_tpu.paged_attention,
        options=options_of(shape),
        target=target,
        interpret=finding_races(pltpu.InterpretParams, dma_execution_mode=mode),
    )
    return jax.jit(with_packed_heads(run))


@pytest.mark.longer
def test_a_race_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel without its waits: the detector must fire, or the tests above prove nothing."""
    real = pltpu.make_async_copy

    class Unwaited:
        def __init__(self, *args: Any) -> None:
            self._copy = real(*args)

        def start(self) -> None:
            self._copy.start()

        def wait(self) -> None:
            """Forgets to."""

    monkeypatch.setattr(mosaic_tpu_kernel.pltpu, "make_async_copy", Unwaited)
    _forget_traces()
    contract = TestEagerCopies()
    with pytest.raises(AssertionError):
        contract.test_pages_shared_between_rows()
    pltpu.reset_tpu_interpret_mode_state()
    _forget_traces()


def _forget_traces() -> None:
    """The op is jitted: a traced kernel would be used again."""
    _interpreted.cache_clear()
    mosaic_tpu.paged_attention.clear_cache()


@pytest.mark.parametrize(
    ("page_size", "length"),
    [
        *(pytest.param(size, 1024, marks=pytest.mark.slow) for size in (16, 64)),
        pytest.param(256, 4096, marks=pytest.mark.longer),
    ],
)
def test_decoding_copies_each_page_once(page_size: int, length: int) -> None:
    """8 rows: what the math needs, and not one page more. All kv heads of a page are one copy."""
    shape = Shape(tokens=8, rows=8, pages_per_row=length // page_size, page_size=page_size, kv_heads=1, head_dim=128)
    inputs = cases.build(shape, TpuContract.target, [(1, length)] * 8, np.random.default_rng(0))
    run = functools.partial(
        mosaic_tpu.paged_attention, options=AttentionOptions(0.1), target=TpuContract.target,
        interpret=pltpu.InterpretParams(), count_copies=True,
    )  # fmt: skip
    *_, copies = jax.jit(run)(*inputs.args, None)
    assert int(copies) == 2 * 8 * length // page_size


@pytest.mark.longer
def test_windows_and_chunks_copy_what_they_see() -> None:
    shape = Shape(tokens=64, rows=3, pages_per_row=64, page_size=16, kv_heads=1, head_dim=128, sliding_window=100)
    inputs = cases.build(shape, TpuContract.target, [(1, 1000), (0, 500), (40, 1024)], np.random.default_rng(0))
    run = functools.partial(
        mosaic_tpu.paged_attention, options=AttentionOptions(0.1, sliding_window=100), target=TpuContract.target,
        interpret=pltpu.InterpretParams(), count_copies=True,
    )  # fmt: skip
    *_, copies = jax.jit(run)(*inputs.args, None)
    decoding = 999 // 16 - 900 // 16 + 1
    chunk = 1023 // 16 - (1024 - 40 - 99) // 16 + 1
    assert int(copies) == 2 * (decoding + chunk)


def test_rows_that_decode_share_a_turn_and_have_three_buffers() -> None:
    """What a turn costs whatever it does is paid once for eight rows."""
    shape = Shape(dtype=jnp.bfloat16, tokens=32, rows=32, pages_per_row=2, page_size=64, kv_heads=2, head_dim=128)
    inputs = cases.build(shape, TpuContract.target, [(1, 70)] * 32, np.random.default_rng(0))
    run = functools.partial(mosaic_tpu.paged_attention, options=AttentionOptions(0.1), target=TpuContract.target)
    launches = list(_launches(jax.make_jaxpr(run)(*inputs.args, None).jaxpr))
    assert [launch.params["grid_mapping"].grid for launch in launches] == [(1,), (32 // 8,), (1 + 16,)]
    buffers = [f"bf16[{slots},4,2,64,128]" for slots in (3, 2)]  # decoding has three, tiles two
    for launch, buffer in zip(launches[1:], buffers, strict=True):
        assert buffer in str(launch.params["jaxpr"])


def _launches(jaxpr: Any) -> Iterator[Any]:
    """The kernels that a program launches, in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation
        elif "jaxpr" in equation.params:
            yield from _launches(equation.params["jaxpr"].jaxpr)
