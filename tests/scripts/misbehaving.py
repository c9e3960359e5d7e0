"""A section of `scripts/device_check.py` whose cases do what kernels on a new device may do."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from device_checks.child import Case
from device_checks.settings import Settings


def cases(settings: Settings, only: Sequence[str] = ()) -> Iterator[Case]:
    for name, run in CASES.items():
        if not only or name in only:
            yield Case(name, run)


def _fine() -> dict[str, Any]:
    return {"figure": 1}


def _raises() -> dict[str, Any]:
    raise ValueError("a bad number\nand where it came from")


def _refuses() -> dict[str, Any]:
    raise NotImplementedError("not on this device")


def _aborts() -> dict[str, Any]:
    print("F0101 Check failed: an error inside the compiler", flush=True)
    os.abort()


def _hangs() -> dict[str, Any]:
    time.sleep(1000)
    return {}


def _exits() -> dict[str, Any]:
    os._exit(3)


CASES = {
    "fine": _fine, "refuses": _refuses, "raises": _raises, "aborts": _aborts, "hangs": _hangs, "exits": _exits,
    "after": _fine,
}  # fmt: skip
