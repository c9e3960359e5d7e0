"""A process that is killed while it writes to the compilation cache costs the next one a compilation, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxinfer.runtime.compile_cache import compiling_into

ROOT = Path(__file__).resolve().parents[3]

# Compiles three programs into the cache and prints what they compute; argv[2]: killed in the middle of that write.
PROGRAM = """
import os, signal, sys
import jax
from jax._src import lru_cache
from jaxinfer.config import RuntimeConfig
from jaxinfer.runtime.engine_builder import configure_jax
from jaxinfer.runtime.compile_cache import compiling_into

writes = 0
put = lru_cache.LRUCache.put

def dying(self, key, value):
    global writes
    writes += 1
    if writes == int(sys.argv[2]):
        (self.path / f"{key}-cache").write_bytes(value[: len(value) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    put(self, key, value)

lru_cache.LRUCache.put = dying
configure_jax(RuntimeConfig(compilation_cache_dir=sys.argv[1]))
with compiling_into(sys.argv[1]):
    found = [float(jax.jit(lambda x, i=i: x * i + 1)(2.0)) for i in range(3)]
print(found, "writes", writes)
"""


def run(folder: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, str(folder), str(killed_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.longer
def test_a_kill_in_the_middle_of_a_write_is_forgotten_by_the_next_start(tmp_path: Path) -> None:
    assert run(tmp_path, 2).returncode == -signal.SIGKILL
    left = list(tmp_path.iterdir())
    assert len([path for path in left if path.name.endswith("-cache")]) == 2
    again = run(tmp_path, -1)
    assert again.stdout.startswith("[1.0, 3.0, 5.0]"), again.stderr
    assert "Error reading" not in again.stderr
    third = run(tmp_path, -1)
    assert third.stdout == "[1.0, 3.0, 5.0] writes 0\n", third.stderr  # every entry is there and whole
    assert all(path.name.endswith("-cache") for path in tmp_path.iterdir())


def entry(folder: Path, name: str, age: float) -> Path:
    path = folder / f"{name}-cache"
    path.write_bytes(b"x")
    os.utime(path, (time.time() - age,) * 2)
    return path


def gone_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("alive", [False, True])
def test_only_the_last_entries_of_a_process_that_is_gone_are_dropped(tmp_path: Path, alive: bool) -> None:
    older, whole, torn = (entry(tmp_path, name, age) for name, age in (("a", 500), ("b", 300), ("c", 200)))
    mark = tmp_path / f"jaxinfer-compiles-{os.getppid() if alive else gone_process()}"
    mark.touch()
    os.utime(mark, (time.time() - 400,) * 2)
    with compiling_into(str(tmp_path)):
        assert (tmp_path / f"jaxinfer-compiles-{os.getpid()}").exists()
    found = set(tmp_path.iterdir())
    assert found == ({older, whole, torn, mark} if alive else {older, whole})


def test_an_old_mark_drops_nothing_that_is_older(tmp_path: Path) -> None:
    whole = entry(tmp_path, "a", 100)
    (tmp_path / f"jaxinfer-compiles-{gone_process()}").touch()
    with pytest.raises(ZeroDivisionError), compiling_into(str(tmp_path)):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == [whole]
    with compiling_into(None):
        pass
