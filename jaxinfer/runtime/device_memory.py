"""How much of an accelerator's memory is ours.

XLA sets a share of a GPU's memory aside when JAX opens the device, three quarters of it unless it is told otherwise,
and what lies beyond cannot be had later. So `gpu_memory_utilization`, a share of the whole, has to reach XLA before.
"""

from __future__ import annotations

import os
from typing import Any

import jax

# JAX's variables for that share, the one of today first; it refuses both at once.
FRACTIONS = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
_DEFAULT_FRACTION = 0.75

AUTOTUNING = 256 << 20
"""Bytes that XLA takes on a GPU, beside a copy of the operands, to try forms of a product: its workspace and the zones
around each array in which it looks for stray writes."""


def claim_memory(utilization: float) -> None:
    """Makes XLA set that share of a GPU's memory aside, unless the environment says how much already, or JAX has opened
    its devices."""
    if _fraction() is None and not devices_are_open():
        os.environ[FRACTIONS[0]] = f"{utilization:g}"


def usable_bytes(device: Any, utilization: float) -> int | None:
    """What programs of ours may take of an accelerator, what they have taken included: that share of its memory, or
    what XLA set aside where that is less. None where the device does not say how much it has."""
    stats = device.memory_stats() or {}
    limit = stats.get("bytes_limit")
    if limit is None:
        return None
    aside = (_fraction() or _DEFAULT_FRACTION) if device.platform == "gpu" else 1.0
    return min(int(limit), int(limit / aside * utilization))


def _fraction() -> float | None:
    given = next((value for name in FRACTIONS if (value := os.environ.get(name))), None)
    return None if given is None else float(given)


def devices_are_open() -> bool:
    """Whether JAX has opened its devices: there is a setting that it does not let change any more then."""
    name = "jax_num_cpu_devices"
    value = getattr(jax.config, name)
    try:
        jax.config.update(name, value + 2)
    except RuntimeError:
        return True
    jax.config.update(name, value)
    return False
