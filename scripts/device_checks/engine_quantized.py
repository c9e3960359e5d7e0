"""Compiled decode steps of the Llama-3-8B shape with its layers quantized; nothing else of the engine runs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from device_checks.child import Case
from device_checks.engine import EngineBench
from device_checks.engine_sizes import engine_sizes
from device_checks.settings import Settings
from jaxinfer.config import Quantization


def cases(settings: Settings, scheme: Quantization) -> Iterator[Case]:
    bench = EngineBench(engine_sizes(settings), scheme, decode_only=True)
    yield Case("start-up", bench.start_up)
    for rows in bench.sizes.requests:
        yield Case(f"compiled decode step, rows: {rows}", functools.partial(bench.decode_step, rows))
