"""Products that come with torch: bfloat16 (cuBLAS), int8 by int8, float8 by float8, and int4 weights.

Scales of the narrow products are left to the caller there (`_int_mm`) or are one for a factor (`_scaled_mm`); rounding
the activations is not part of their time. Timed by replays of a CUDA graph, over several weights in turn.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

from device_checks.child import Case
from device_checks.product_cases import GROUP, PLAIN, ProductCase, product_cases
from device_checks.settings import Settings
from device_checks.torch_timing import device, time_launches

Product = Callable[[Any], torch.Tensor]
_INNER_TILES = 8  # of the packed int4 weight, as torch's own callers choose it
_LEAST_INT8_ROWS = 17  # `_int_mm` takes more than 16


def cases(settings: Settings) -> Iterator[Case]:
    makers = {PLAIN: plain, "w8a8": int8, "fp8-dynamic": fp8, "int4": int4}
    for case in product_cases(settings):
        if case.scheme in makers:
            yield Case(case.name, functools.partial(_measure, case, makers[case.scheme]))


def _measure(case: ProductCase, make: Callable[[ProductCase], tuple[Product, Callable[[], Any]]]) -> dict[str, Any]:
    torch.manual_seed(0)
    with torch.inference_mode():
        product, weight = make(case)
        weights = [weight() for _ in range(case.weights)]
        timing, how = time_launches(lambda i: product(weights[i % case.weights]), case.turns * case.weights)
        if not bool(product(weights[0]).float().isfinite().all()):
            raise ValueError("the outputs are not finite")
    return {**case.fields(), "how": how, **timing.fields()}


def plain(case: ProductCase) -> tuple[Product, Callable[[], Any]]:
    place: Any = {"device": device(), "dtype": torch.bfloat16}
    x = torch.randn(case.tokens, case.inputs, **place)
    return lambda weight: x @ weight.T, lambda: torch.randn(case.outputs, case.inputs, **place)


def int8(case: ProductCase) -> tuple[Product, Callable[[], Any]]:
    if case.tokens < _LEAST_INT8_ROWS:
        raise NotImplementedError("it takes more than 16 rows")
    x = _whole(case.tokens, case.inputs)
    return lambda weight: torch._int_mm(x, weight.T), lambda: _whole(case.outputs, case.inputs)


def fp8(case: ProductCase) -> tuple[Product, Callable[[], Any]]:
    if device() == "cpu":
        raise NotImplementedError("float8 products are the GPU's")
    one = torch.ones((), device=device())

    def narrow(rows: int) -> torch.Tensor:
        return torch.randn(rows, case.inputs, device=device()).to(torch.float8_e4m3fn)

    x = narrow(case.tokens)

    def product(weight: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(x, weight.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)

    return product, lambda: narrow(case.outputs)


def int4(case: ProductCase) -> tuple[Product, Callable[[], Any]]:
    if device() == "cpu":
        raise NotImplementedError("int4 products are the GPU's")
    x = torch.randn(case.tokens, case.inputs, device=device(), dtype=torch.bfloat16)
    scales_and_zeros = torch.rand(case.inputs // GROUP, case.outputs, 2, device=device(), dtype=torch.bfloat16)

    def weight() -> torch.Tensor:
        pairs = torch.randint(0, 256, (case.outputs, case.inputs // 2), device=device(), dtype=torch.uint8)
        return torch._convert_weight_to_int4pack(pairs, _INNER_TILES)

    return lambda packed: torch._weight_int4pack_mm(x, packed, GROUP, scales_and_zeros), weight


def _whole(rows: int, columns: int) -> torch.Tensor:
    return torch.randint(-127, 128, (rows, columns), device=device(), dtype=torch.int8)
