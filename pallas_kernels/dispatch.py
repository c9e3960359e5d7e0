"""Which backend runs an op: decided in Python, before tracing, from the device that is being compiled for.

The target is read off a mesh's devices and passed down, never asked of the running process: ahead-of-time compilation
for another device gives `jax.default_backend()` the wrong answer, and `lax.platform_dependent` traces every branch and
cannot tell two GPU generations apart.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Generic, TypeVar

Case = TypeVar("Case")


class Unsupported(NotImplementedError):
    """No backend, or not the one named, can serve a case; the message says why."""


class UnknownBackend(Unsupported, ValueError):
    """No backend has the name that was asked for; the message lists those there are."""


@dataclasses.dataclass(frozen=True)
class DeviceTarget:
    """The kind of device that a program is compiled for.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        device_kind: the vendor's name, for example "NVIDIA H200" or "TPU v5 lite".
        compute_capability: (major, minor) on an NVIDIA GPU, None elsewhere.
        instructions: on a CPU the instruction set (`native_cpu/instructions.py`) whose kernels have been loaded; None:
            XLA serves everything.
    """

    platform: str
    device_kind: str
    compute_capability: tuple[int, int] | None = None
    instructions: str | None = None

    @classmethod
    def of(cls, device: Any) -> DeviceTarget:
        """Reads the target off a `jax.Device` or a device of an ahead-of-time topology.

        Raises:
            ValueError: the device reports a compute capability that is not "major.minor".
        """
        platform = {"cuda": "gpu"}.get(device.platform, device.platform)
        capability = getattr(device, "compute_capability", None) if platform == "gpu" else None
        return cls(platform, device.device_kind, None if capability is None else _parse_capability(str(capability)))


@dataclasses.dataclass(frozen=True)
class Backend(Generic[Case]):
    """One implementation of an op.

    Attributes:
        name: what users write and logs show.
        supports: (target, case) -> None if it can serve the case, else the reason why not. Runs before the
            implementation is imported, so it must not need it.
        path: "package.module:function", imported by `load` and not before.
        by_name_only: never picked unless it is named, because what it needs may not be installed.
    """

    name: str
    supports: Callable[[DeviceTarget, Case], str | None]
    path: str
    by_name_only: bool = False

    def load(self) -> Callable[..., Any]:
        """Imports the implementation and returns its function."""
        module, _, function = self.path.partition(":")
        return getattr(importlib.import_module(module), function)


@dataclasses.dataclass(frozen=True)
class Op(Generic[Case]):
    """An op's name and its backends, the preferred one first."""

    name: str
    backends: tuple[Backend[Case], ...]


# (op, backend) -> why nothing runs through it in this process any more.
_withdrawn: dict[tuple[str, str], str] = {}


def withdraw(op: str, backend: str, reason: str) -> None:
    """Takes a backend that has shown itself faulty on the device at hand out of this process: `select` then treats it
    as one that cannot serve, for this reason. Programs that are compiled already keep what they have."""
    _withdrawn[op, backend] = reason


def withdrawn() -> Mapping[tuple[str, str], str]:
    """(op, backend) -> the reason, for all that `withdraw` took out."""
    return MappingProxyType(_withdrawn)


def restore() -> None:
    """Undoes every `withdraw`."""
    _withdrawn.clear()


def select(op: Op[Case], target: DeviceTarget, case: Case, backend: str | None = None) -> Backend[Case]:
    """Picks the backend that runs `case` on `target`: the one named, else the first in order that can. Imports nothing.

    Backends that are `by_name_only` are left out of that order.

    Raises:
        UnknownBackend: no backend of that name; the message lists the known ones.
        Unsupported: the named backend cannot serve the case, or no backend can; the message holds every reason.
    """
    if backend is not None:
        named = {b.name: b for b in op.backends}
        if backend not in named:
            raise UnknownBackend(f"backend of {op.name} is {backend!r}; known: {', '.join(named) or 'none'}")
        reason = _refusal(op, named[backend], target, case)
        if reason is not None:
            raise Unsupported(f"{op.name} backend {backend!r} cannot serve this on {_describe(target)}: {reason}")
        return named[backend]
    reasons = []
    for candidate in op.backends:
        reason = "only by name" if candidate.by_name_only else _refusal(op, candidate, target, case)
        if reason is None:
            return candidate
        reasons.append(f"{candidate.name}: {reason}")
    raise Unsupported(f"no backend of {op.name} can serve this on {_describe(target)}: {'; '.join(reasons) or 'none'}")


def _refusal(op: Op[Case], backend: Backend[Case], target: DeviceTarget, case: Case) -> str | None:
    return _withdrawn.get((op.name, backend.name)) or backend.supports(target, case)


def _describe(target: DeviceTarget) -> str:
    return f"{target.platform} ({target.device_kind})"


def _parse_capability(text: str) -> tuple[int, int]:
    try:
        major, minor = text.split(".")
        return int(major), int(minor)
    except ValueError:
        raise ValueError(f"compute_capability is {text!r}; expected 'major.minor', for example '9.0'") from None
