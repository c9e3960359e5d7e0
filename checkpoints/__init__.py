"""Weights in and out: Hugging Face folders and converted checkpoints. Importing this package does not import jax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from checkpoints.files import CheckpointError, is_converted
from checkpoints.folder import read_config

if TYPE_CHECKING:
    from checkpoints.load import load_model as load_model

__all__ = ["CheckpointError", "is_converted", "load_model", "read_config"]

_HOMES = {
    "load_model": "checkpoints.load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'checkpoints' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
