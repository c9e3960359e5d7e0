"""Compiles the kernels for one instruction set, keeps the result, and makes it known to XLA.

What is compiled stays in the user's cache folder under a name made of everything that it depends on. It is code: a file
or folder that others may write is not loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import math
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import jax
import jaxlib

from pallas_kernels.native_cpu.instructions import BY_NAME, InstructionSet, available

_LOG = logging.getLogger(__name__)
_SOURCES = Path(__file__).resolve().parent
_COMPILERS = ("c++", "g++", "clang++")
_COMPILE_SECONDS = 300
# No `-ffast-math`: sums have the order that is written, and a product is not contracted into a sum.
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-pthread", "-w")
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")  # "quota period" or "max period", in microseconds
HANDLERS = (
    "dense_matmul",
    "quantized_matmul",
    "mxfp4_matmul",
    "grouped_dense_matmul",
    "grouped_quantized_matmul",
    "grouped_mxfp4_matmul",
    "gating",
    "norm",
    "paged_attention",
)


class KernelsUnavailable(RuntimeError):
    """The kernels cannot be had on this machine; the message says why."""


def target_name(handler: str, instructions: str) -> str:
    """The name by which programs call a handler."""
    return f"jaxinfer_{handler}_{instructions}"


@functools.cache
def load(name: str) -> InstructionSet:
    """Compiles the kernels if they are not there yet, loads them and registers their handlers, once a process.

    Args:
        name: of an instruction set, or "auto" for the best that this CPU has.

    Raises:
        ValueError: no instruction set has that name.
        KernelsUnavailable: the CPU does not have it, or there is no compiler, or it failed.
    """
    if name != "auto" and name not in BY_NAME:
        raise ValueError(f"the instruction set is {name!r}; it must be auto or one of {', '.join(BY_NAME)}")
    usable = available()
    if name == "auto":
        if not usable:
            raise KernelsUnavailable("this CPU has none of the instruction sets that they are written for")
        return load(usable[0].name)
    instructions = BY_NAME[name]
    if instructions not in usable:
        have = ", ".join(one.name for one in usable) or "none"
        raise KernelsUnavailable(f"this CPU does not have {name}; of those that the kernels know it has {have}")
    library = ctypes.CDLL(str(compiled(instructions)))
    library.jaxinfer_start(ctypes.c_int(usable_cores()))
    for handler in HANDLERS:
        function = getattr(library, f"jaxinfer_{handler}")
        jax.ffi.register_ffi_target(target_name(handler, name), jax.ffi.pycapsule(function), platform="cpu")
    return instructions


def compiled(instructions: InstructionSet) -> Path:
    """The shared library for an instruction set, compiled now unless that was done before.

    Raises:
        KernelsUnavailable: there is no compiler, it failed, or the cache folder cannot be used.
    """
    compiler = _compiler()
    if compiler is None:
        raise KernelsUnavailable(f"there is no C++ compiler ({', '.join(_COMPILERS)}, or $CXX)")
    include = Path(jaxlib.__file__).resolve().parent / "include"
    if not include.is_dir():
        raise KernelsUnavailable(f"jaxlib {jaxlib.__version__} came without its headers ({include})")
    command = [compiler, *_FLAGS, *instructions.compiler_flags, "-isystem", str(include), str(_SOURCES / "kernels.cc")]
    folder = _cache_folder()
    library = folder / f"{instructions.name}-{_digest(command)}.so"
    if library.exists():
        _refuse_writable(library)
        return library
    _LOG.info("compiling the CPU kernels for %s with %s", instructions.name, compiler)
    handle, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(handle)
    try:
        done = subprocess.run(
            [*command, "-o", unfinished], capture_output=True, text=True, timeout=_COMPILE_SECONDS, check=False
        )
        if done.returncode != 0:
            raise KernelsUnavailable(f"{compiler} failed: {done.stderr.strip()[-2000:]}")
        os.replace(unfinished, library)  # whoever compiles at the same time makes the same file
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"{compiler} did not finish: {error}") from error
    finally:
        Path(unfinished).unlink(missing_ok=True)
    return library


def usable_cores() -> int:
    """Cores that this process may use: its affinity, and no more than its control group's share of time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _CPU_MAX.read_text(encoding="utf-8").split()
        share = cores if quota == "max" else math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control groups of version 2
        share = cores
    return max(1, min(cores, share))


def _compiler() -> str | None:
    named = os.environ.get("CXX")
    return next((path for name in ([named] if named else _COMPILERS) if (path := shutil.which(name))), None)


def _digest(command: list[str]) -> str:
    """Of the sources, the compiler and its options, and jaxlib's headers (by its version)."""
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    parts = [" ".join(command[1:-3]), version, jaxlib.__version__]
    parts += [path.read_text(encoding="utf-8") for path in sorted(_SOURCES.glob("*.[hc]*"))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        folder = Path(root).expanduser() / "jaxinfer" / "kernels"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home folder
        raise KernelsUnavailable(f"no folder to keep them in: {error}") from error
    _refuse_writable(folder)
    return folder


def _refuse_writable(path: Path) -> None:
    """Raises KernelsUnavailable where somebody else could have put code."""
    found = path.stat()
    if found.st_uid not in (os.getuid(), 0) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise KernelsUnavailable(f"{path} belongs to another user or can be written by others")
