"""What malloc is told, where it can be told anything."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jaxinfer.runtime import allocator

# Takes and frees a block of 256 MB twice; prints how many pages were fetched anew the second time.
BLOCKS = """
import resource, threading
from jaxinfer.runtime.allocator import keep_large_blocks
import ctypes
if {keep}: keep_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def use():
    block = libc.malloc(256 << 20)
    ctypes.memset(block, 1, 256 << 20)
    libc.free(block)
if {thread}:
    on_this_thread, use = use, lambda: (started := threading.Thread(target=on_this_thread)).start() or started.join()
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(allocator._libc() is None, reason="malloc is not glibc's")


@glibc
@pytest.mark.parametrize("thread", [False, True])
def test_large_blocks_are_kept_for_the_next_step(thread):
    faults = {}
    for keep in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", BLOCKS.format(keep=keep, thread=thread)], capture_output=True, text=True, check=True
        )
        faults[keep] = int(done.stdout)
    assert faults[False] > 1000  # pages of 4 KB: 65,536; larger ones are fewer
    assert faults[True] < 100


@pytest.mark.parametrize(
    "name", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES"]
)
def test_what_the_environment_settles_stays(name, monkeypatch):
    monkeypatch.setenv(name, "glibc.malloc.mmap_threshold=131072" if name == "GLIBC_TUNABLES" else "131072")
    assert not allocator.keep_large_blocks()


def test_where_malloc_cannot_be_told_nothing_happens(monkeypatch):
    monkeypatch.setattr(allocator, "_libc", lambda: None)
    assert not allocator.keep_large_blocks()
    assert not allocator.give_back_free_memory()


def test_another_system_has_no_such_malloc(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator._libc.__wrapped__() is None
