"""What the machine is: device, driver, versions, tools; and what of the optional packages is missing."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_checks.child import Case
from device_checks.probe_packages import OPTIONAL, PACKAGES
from device_checks.settings import Settings

_QUERY = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")


def cases(settings: Settings) -> Iterator[Case]:
    yield Case("packages", functools.partial(_packages, settings))
    yield Case("tools", _tools)
    yield Case("device", _device)


def _packages(settings: Settings) -> dict[str, Any]:
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    missing = {name: reason for name, reason in OPTIONAL.items() if not is_installed(name)}
    return {
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "missing": missing,
        "rehearsal": settings.rehearse,
    }


def is_installed(name: str) -> bool:
    """Of a module's name; the package that it lies in may be missing itself."""
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _tools() -> dict[str, Any]:
    """Mosaic GPU and XLA look for these: a missing one explains a failure further down."""
    cuda = Path(os.environ.get("CUDA_ROOT", "/usr/local/cuda"))
    files = ("bin/ptxas", "bin/nvdisasm", "nvvm/libdevice/libdevice.10.bc")
    smi = None
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader"]
        smi = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    return {
        "on_path": {name: shutil.which(name) for name in ("ptxas", "nvdisasm", "nvcc", "cc")},
        "cuda_root": {str(cuda / name): (cuda / name).exists() for name in files},
        "nvidia_smi": dict(zip(_QUERY, smi.splitlines()[0].split(", "), strict=False)) if smi else None,
        "cpus": os.cpu_count(),
    }


def _device() -> dict[str, Any]:
    import jax
    import jax.extend.backend

    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    return {
        "platform": {"cuda": "gpu"}.get(device.platform, device.platform),
        "device_kind": device.device_kind,
        "count": jax.device_count(),
        "compute_capability": str(getattr(device, "compute_capability", None)),
        "bytes_limit": stats.get("bytes_limit"),
        "backend_version": jax.extend.backend.get_backend().platform_version,
    }
