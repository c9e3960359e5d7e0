"""What the tests of every Triton kernel are given."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pallas_kernels import ptxas, triton_support
from tests.pallas_kernels.triton_interpreter import Interpreter


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    process = Interpreter()
    yield process
    process.close()


@pytest.fixture
def triton_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax-triton is what launches a kernel on a GPU, and an assembler what makes one; the interpreter needs neither."""
    monkeypatch.setattr(triton_support, "_is_installed", lambda package: True)
    monkeypatch.setattr(triton_support, "_version", lambda: (0, 4, 1))
    monkeypatch.setattr(ptxas, "find", lambda: ptxas.Assembler(Path("/usr/bin/ptxas"), (13, 0)))
