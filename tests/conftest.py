"""Settings that must be made before jax starts: the CPU with eight virtual devices, or the device that `-m` asks for.

`pytest -m gpu` and `pytest -m tpu` run on that device and collect the files named `test_on_device.py` alone: a machine
with a device may lack what the other files import. `--device-rehearsal` runs them on the CPU, with tiny sizes.

What is compiled on the CPU goes to one cache, `PROGRAMS`, beside pytest's own: the same program is compiled once,
whichever test, worker or run needs it. Remove that folder for a cold run.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import os
import sys
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from jaxinfer.runtime.compile_cache import compiling_into

DEVICES = ("gpu", "tpu")
ON_DEVICE = "test_on_device.py"

PROGRAMS = Path(".pytest_cache", "d", "programs")
KEPT_SECONDS = 7 * 24 * 3600.0  # programs older than this are compiled anew, so that the folder does not grow for ever

GROWTH = 200 << 20  # bytes that a worker may grow by before it gives back what it does not need


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device-rehearsal", action="store_true", help="run the tests marked gpu or tpu on the CPU, with tiny sizes"
    )


def pytest_configure(config: pytest.Config) -> None:
    if _wants_device(config) and not config.getoption("--device-rehearsal"):
        # Several processes of pytest-xdist share the device: none takes all of its memory at its start.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        return
    platforms = os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for processes that tests start
    # With the default pool of one thread per core, collectives between virtual devices starve each other and abort.
    os.environ.setdefault("NPROC", "32")

    import jax

    jax.config.update("jax_platforms", platforms)  # a conftest.py further down may have imported jax already
    jax.config.update("jax_num_cpu_devices", 8)
    if importlib.util.find_spec("libtpu") is None:  # tests/aot shows that programs compile: it must not read them back
        _keep_programs(config)


def _keep_programs(config: pytest.Config) -> None:
    """Settles where this process keeps compiled programs; `configure_jax` cannot move it after the first of them."""
    import jax

    folder = config.rootpath / PROGRAMS
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(config, "workerinput"):  # one process of a run, before pytest-xdist starts its workers
        for entry in folder.glob("*-cache"):
            if entry.stat().st_mtime < time.time() - KEPT_SECONDS:
                entry.unlink(missing_ok=True)
    kept = compiling_into(str(folder))  # entries that a killed run may have torn are dropped
    kept.__enter__()
    config.add_cleanup(lambda: kept.__exit__(None, None, None))
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keeps the garbage collector from the collected tests, some 800,000 objects: one look at them takes half a
    second."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Gives memory back when a worker has grown: most of it is what LLVM freed after compiling, and glibc keeps."""
    yield
    global _size
    if "jax" not in sys.modules or _resident() < _size + GROWTH:
        return
    if nextitem is None or nextitem.path != item.path:  # within a file, tests count what is compiled
        import jax

        jax.clear_caches()
        gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc alone has it
        trim(0)
    _size = _resident()


_size = 0  # bytes that this process held when it last gave memory back


def _resident() -> int:
    """Bytes of memory that this process holds; 0 where there is no /proc."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if _wants_device(config) and collection_path.is_file() and collection_path.name != ON_DEVICE:
        return True
    return None


def _wants_device(config: pytest.Config) -> bool:
    """Whether `-m` begins with a device's marker."""
    return str(config.getoption("markexpr")).split()[:1] in [[name] for name in DEVICES]


@pytest.fixture
def rehearsed(request: pytest.FixtureRequest) -> bool:
    """Whether tests for a device run on the CPU."""
    return bool(request.config.getoption("--device-rehearsal"))


@pytest.fixture
def device(request: pytest.FixtureRequest, rehearsed: bool) -> str:
    """The platform that a test marked gpu or tpu runs on; the test is skipped where JAX does not see it."""
    import jax

    platform = {"cuda": "gpu"}.get(jax.devices()[0].platform, jax.devices()[0].platform)
    wanted = [name for name in DEVICES if request.node.get_closest_marker(name)]
    if platform not in wanted and not rehearsed:
        pytest.skip(f"needs a {' or '.join(wanted)}, and JAX runs on {platform} here: pytest -m {wanted[0]}")
    return platform
