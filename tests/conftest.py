"""Settings that must be made before jax starts: the CPU with eight virtual devices, or the device that `-m` asks for.

`pytest -m gpu` and `pytest -m tpu` run on that device and collect the files named `test_on_device.py` alone: a machine
with a device may lack what the other files import. `--device-rehearsal` runs them on the CPU, with tiny sizes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DEVICES = ("gpu", "tpu")
ON_DEVICE = "test_on_device.py"


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
