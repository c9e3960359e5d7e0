"""The two ceilings through torch: a device-to-device copy, and cuBLAS on random bfloat16 matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from device_checks.child import Case
from device_checks.settings import Settings
from device_checks.torch_timing import device, time_launches


def cases(settings: Settings) -> Iterator[Case]:
    gib = (1 << 20) if settings.rehearse else (1 << 30)
    size = 256 if settings.rehearse else 8192
    yield Case("copy", lambda: _copy(4 * gib, 2 if settings.rehearse else 20))
    yield Case("matrix", lambda: _matrix(size, 2 if settings.rehearse else 50))


def _copy(num_bytes: int, launches: int) -> dict[str, Any]:
    source = torch.randint(0, 2**31, (num_bytes // 4,), dtype=torch.int32, device=device())
    target = torch.empty_like(source)
    timing, how = time_launches(lambda i: target.copy_(source), launches)
    return {"copy_bytes_per_second": 2 * num_bytes / timing.seconds, "bytes": num_bytes, "how": how, **timing.fields()}


def _matrix(size: int, launches: int) -> dict[str, Any]:
    a, b = (torch.randn(size, size, device=device(), dtype=torch.bfloat16) for _ in range(2))
    c = torch.empty(size, size, device=device(), dtype=torch.bfloat16)
    timing, how = time_launches(lambda i: torch.matmul(a, b, out=c), launches)
    return {"flops_per_second": 2 * size**3 / timing.seconds, "size": size, "how": how, **timing.fields()}
