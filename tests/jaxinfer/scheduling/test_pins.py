"""Pins keep their promises, and for each rule a fault in it is noticed."""

from __future__ import annotations

import pytest

from tests.jaxinfer.scheduling.pinning import SCENARIOS
from tests.pin_mutants import PIN_MUTANTS


@pytest.mark.parametrize("name", SCENARIOS)
def test_promise(name: str) -> None:
    SCENARIOS[name]()


@pytest.mark.parametrize("name", PIN_MUTANTS)
def test_fault_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PIN_MUTANTS[name](monkeypatch)
    for scenario in SCENARIOS.values():
        try:
            scenario()
        except Exception:  # a fault may show as a wrong number, a broken book or a crash
            return
    pytest.fail(f"{name} was not noticed")
