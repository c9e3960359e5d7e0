"""What the process's allocator of host memory does with large blocks: glibc's malloc, where that is what runs.

A step on a CPU takes its temporaries from malloc. glibc maps every block over 32 MB anew and unmaps it behind the call,
so that each step pays for fresh pages. And what LLVM freed while it compiled stays with the process.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h's M_ names
_MOST = (1 << 31) - 1  # mallopt takes an int: blocks below 2 GiB are kept
# Whoever sets these has chosen; GLIBC_TUNABLES may name the same two.
_CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX")


@functools.cache
def _libc() -> ctypes.CDLL | None:
    """The C library if its malloc can be told anything: not on macOS, and musl's cannot."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def keep_large_blocks() -> bool:
    """Lets malloc keep blocks that are freed, up to 2 GiB, for the next step. False where it cannot be told, or where
    the environment has settled it (`MALLOC_MMAP_THRESHOLD_`, `MALLOC_TRIM_THRESHOLD_`, `MALLOC_ARENA_MAX`, or any of
    them in `GLIBC_TUNABLES`).

    For the whole process, and for threads that begin afterwards: they share one arena, since one of their own holds no
    block above 64 MB.
    """
    libc = _libc()
    if libc is None or any(name in os.environ for name in _CHOSEN) or "malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    settings = ((_MMAP_THRESHOLD, _MOST), (_TRIM_THRESHOLD, _MOST), (_ARENA_MAX, 1))
    taken = [libc.mallopt(name, value) for name, value in settings]
    return all(taken)


def give_back_free_memory() -> bool:
    """Returns what malloc holds and nobody uses to the system: after compiling, hundreds of megabytes. Takes some
    milliseconds. False where malloc cannot be told, or had nothing."""
    libc = _libc()
    return libc is not None and libc.malloc_trim(0) == 1
