"""Marks of tests that need the compiler for a device, and none of the device; and which of them CI has."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from typing import Any

import pytest

TPUS = ("v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2", "tpu7x:2x2x1")
# What is compiled for all of them is many times the same. In CI the newest takes every program, and of two that are
# alike, with two cores or one on a chip, the older takes every second and the other the rest; `-m slow` has what is
# left, for which a new compiler or a new kernel is the occasion.
_SHARES = {"v4:2x2x1": (0,), "v5p:2x2x1": (1,), "v5e:2x2": (0,), "v6e:2x2": (1,), "tpu7x:2x2x1": (0, 1)}


def _is_missing(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is None for package in packages)


needs_libtpu = pytest.mark.skipif(
    _is_missing("libtpu"), reason="libtpu is not installed: nothing can be compiled for a TPU"
)
needs_cuda = pytest.mark.skipif(
    _is_missing("jax_cuda13_plugin", "jax_cuda12_plugin") or shutil.which("ptxas") is None,
    reason="JAX's CUDA plugin, or ptxas of the CUDA toolkit, is not here: nothing can be compiled for a GPU",
)


def shared_among_tpus(programs: Iterable[Any]) -> list[Any]:
    """Parameters (topology, program) of a test; those that another generation has in CI are marked slow."""
    return [
        pytest.param(topology, program, marks=[pytest.mark.slow] * (number % 2 not in _SHARES[topology]))
        for number, program in enumerate(programs)
        for topology in TPUS
    ]
