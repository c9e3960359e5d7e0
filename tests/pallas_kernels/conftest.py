"""What the tests of every Triton kernel are given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pallas_kernels import triton_support
from tests.pallas_kernels.triton_interpreter import Interpreter


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Interpreter]:
    process = Interpreter()
    yield process
    process.close()


@pytest.fixture
def triton_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """jax-triton is what launches a kernel on a GPU; the interpreter needs none of it."""
    monkeypatch.setattr(triton_support, "_is_installed", lambda package: True)
