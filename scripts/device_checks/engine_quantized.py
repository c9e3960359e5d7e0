"""Compiled decode steps of the Llama-3-8B shape with its layers quantized; nothing else of the engine runs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from device_checks.child import Case
from device_checks.engine import EngineBench
from device_checks.engine_sizes import engine_sizes
from device_checks.settings import Settings
from jaxinfer.config import Quantization


def cases(settings: Settings, scheme: Quantization, part: str = "whole") -> Iterator[Case]:
    sizes = dataclasses.replace(engine_sizes(settings, part), requests=(), budget=0)
    bench = EngineBench(sizes, scheme)
    yield Case("start-up", bench.start_up)
    for rows in sizes.rows:
        yield Case(f"compiled decode step, rows: {rows}", functools.partial(bench.decode_step, rows))
