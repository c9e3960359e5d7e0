"""What is said at start where XLA's loop serves attention on a GPU."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch, triton_support
from pallas_kernels.dispatch import DeviceTarget
from pallas_kernels.paged_attention.xla_cost import cost_on_gpu
from tests.pallas_kernels.paged_attention.cases import Shape
from tests.pallas_kernels.paged_attention.contract import case_of

AMPERE = DeviceTarget("gpu", "NVIDIA A100", (8, 0))
CASE = case_of(Shape(dtype=jnp.bfloat16, tokens=32, rows=32, pages_per_row=128, page_size=64))
LAYERS = [CASE] * 32


@pytest.fixture
def no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_support, "_is_installed", lambda package: False)


@pytest.mark.usefixtures("no_triton")
def test_the_launches_of_a_step_and_what_to_install_are_named() -> None:
    # 32 layers, 12 kernels a block of 64 keys: 16 blocks and 128 of them.
    assert cost_on_gpu(AMPERE, LAYERS, 8192, None) == (
        "attention: XLA's own form, which launches about 6,144 kernels a step for 1,024 tokens of its longest row, "
        "49,152 at 8,192 tokens; triton_gpu would launch a few a layer, but jax-triton is not installed: "
        "pip install jaxinfer[cuda13] (or cuda12)"
    )


@pytest.mark.usefixtures("no_triton")
def test_windows_and_rows_count() -> None:
    window = dataclasses.replace(CASE, options=dataclasses.replace(CASE.options, sliding_window=64))
    text = cost_on_gpu(AMPERE, [CASE, window], 1024, None)
    assert text is not None
    assert "about 216 kernels a step for 1,024 tokens of its longest row; triton_gpu" in text
    text = cost_on_gpu(AMPERE, [dataclasses.replace(CASE, num_rows=65)], 1024, None)
    assert text is not None
    assert "about 384 kernels" in text  # 64 rows a turn


@pytest.mark.usefixtures("triton_packages")
def test_nothing_is_said_where_a_kernel_serves_or_no_gpu_is_there() -> None:
    assert cost_on_gpu(AMPERE, LAYERS, 8192, None) is None
    assert cost_on_gpu(DeviceTarget("cpu", "cpu"), LAYERS, 8192, None) is None
    text = cost_on_gpu(AMPERE, LAYERS, 8192, "xla")
    assert text is not None
    assert text.endswith("49,152 at 8,192 tokens; it was asked for by name")


@pytest.mark.usefixtures("triton_packages")
def test_a_kernel_that_was_found_faulty_is_named() -> None:
    dispatch.withdraw("paged_attention", "triton_gpu", "it was wrong")
    try:
        text = cost_on_gpu(AMPERE, LAYERS, 1024, None)
    finally:
        dispatch.restore()
    assert text is not None
    assert text.endswith("triton_gpu would launch a few a layer, but it was wrong")
