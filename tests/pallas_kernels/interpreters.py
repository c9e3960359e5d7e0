"""Pallas' interpreters, told to look for data races and to keep what they found.

JAX 0.12 raises at a race unless told otherwise, and says nothing afterwards; earlier ones know no such choice.
"""

from __future__ import annotations

import dataclasses
from typing import Any


def finding_races(params: type[Any], **options: Any) -> Any:
    """`params`: `pltpu.InterpretParams` or `plgpu.InterpretGPUParams`, made with `options` and with race detection.

    Whether there was a race is then read from the interpreter: the kernel itself ends either way.
    """
    if "on_race" in {field.name for field in dataclasses.fields(params)}:
        options["on_race"] = "warn"
    return params(detect_races=True, **options)
