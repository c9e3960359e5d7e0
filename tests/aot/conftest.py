"""Programs compiled for devices that are not here. Those for TPUs skip, with the reason, where libtpu is missing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if importlib.util.find_spec("libtpu") is not None:
        # Read by libtpu when it is loaded: no metadata server to ask, and other processes may load it too.
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
        return
    skip = pytest.mark.skip(reason="libtpu is not installed: nothing can be compiled for a TPU")
    for item in items:
        if Path(__file__).parent in item.path.parents and item.path.name != "test_mosaic_gpu.py":
            item.add_marker(skip)
