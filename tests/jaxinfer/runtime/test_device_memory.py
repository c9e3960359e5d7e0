"""Which share of a GPU's memory is asked of XLA, and what of it is used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jaxinfer.runtime.device_memory import FRACTIONS, claim_memory, usable_bytes

GIB = 1 << 30


class Device:
    def __init__(self, platform: str, limit: int | None) -> None:
        self.platform, self._limit = platform, limit

    def memory_stats(self) -> dict[str, int] | None:
        return None if self._limit is None else {"bytes_limit": self._limit, "bytes_in_use": 0}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FRACTIONS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variable", "aside", "utilization", "usable"),
    [
        (None, 75, 0.9, 75),  # JAX had opened its devices before it could be told
        (None, 75, 0.5, 50),
        (FRACTIONS[0], 90, 0.9, 90),  # what `claim_memory` sets: all of it
        (FRACTIONS[1], 30, 0.9, 30),  # the user knows of others on the device
        (FRACTIONS[0], 95, 0.5, 50),
    ],
)
def test_the_share_is_one_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, aside: int, utilization: float, usable: int
) -> None:
    if variable is not None:
        monkeypatch.setenv(variable, str(aside / 100))
    assert usable_bytes(Device("gpu", aside * GIB), utilization) == pytest.approx(usable * GIB, abs=2)


def test_other_accelerators_set_nothing_aside() -> None:
    assert usable_bytes(Device("tpu", 16 * GIB), 0.75) == 12 * GIB
    assert usable_bytes(Device("tpu", None), 0.75) is None


def test_nothing_is_claimed_once_jax_has_opened_its_devices() -> None:
    import jax

    jax.devices()
    claim_memory(0.8)
    assert not any(name in os.environ for name in FRACTIONS)


@pytest.mark.parametrize(("given", "told"), [({}, ["0.8", None]), ({FRACTIONS[1]: "0.3"}, [None, "0.3"])])
def test_xla_is_told_before_unless_somebody_did(given: dict[str, str], told: list[str | None]) -> None:
    program = (
        "import jax, os\n"
        "from jaxinfer.runtime.device_memory import FRACTIONS, claim_memory\n"
        "before = jax.config.jax_num_cpu_devices\n"
        "claim_memory(0.8)\n"
        "assert jax.config.jax_num_cpu_devices == before\n"
        "print([os.environ.get(name) for name in FRACTIONS])\n"
    )
    environment = {**os.environ, **given, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(told)
