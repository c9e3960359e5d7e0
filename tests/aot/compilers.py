"""Marks of tests that need the compiler for a device, and none of the device."""

from __future__ import annotations

import importlib.util
import shutil

import pytest


def _is_missing(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) is None for package in packages)


needs_libtpu = pytest.mark.skipif(
    _is_missing("libtpu"), reason="libtpu is not installed: nothing can be compiled for a TPU"
)
needs_cuda = pytest.mark.skipif(
    _is_missing("jax_cuda13_plugin", "jax_cuda12_plugin") or shutil.which("ptxas") is None,
    reason="JAX's CUDA plugin, or ptxas of the CUDA toolkit, is not here: nothing can be compiled for a GPU",
)
