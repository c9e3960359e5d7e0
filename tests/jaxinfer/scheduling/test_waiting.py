"""The line of waiting sequences is a sorted list, whatever comes and goes."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from jaxinfer.scheduling import waiting
from jaxinfer.scheduling.waiting import WaitingLine


def sequence(order: tuple[float, int, int]) -> Any:
    return SimpleNamespace(order=order, key=(str(order), 0))


@pytest.mark.parametrize("seed", range(20))
def test_it_is_a_sorted_list(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(waiting, "_ROW", 3)
    rng, line, expected = random.Random(seed), WaitingLine(), list[Any]()
    orders = [(float(rng.randrange(9)), i, 0) for i in range(120)]
    rng.shuffle(orders)
    for step in range(400):
        if orders and (rng.random() < (0.7 if step < 200 else 0.3) or not expected):
            expected.append(sequence(orders.pop()))
            line.add(expected[-1])
            expected.sort(key=lambda each: each.order)
        elif expected:
            gone = expected.pop(0 if rng.random() < 0.5 else rng.randrange(len(expected)))
            line.remove(gone)
            with pytest.raises(ValueError, match="does not wait"):
                line.remove(gone)
        assert list(line) == expected
        assert len(line) == len(expected)
        assert bool(line) == bool(expected)
        assert [line[i] for i in range(len(expected))] == expected
        with pytest.raises(IndexError):
            line[len(expected)]
        assert all(len(row) <= 6 for row in line._rows)


def test_who_goes_moves_one_row_alone() -> None:
    line = WaitingLine()
    everyone = [sequence((0.0, i, 0)) for i in range(20_000)]
    line.update(everyone)
    rows = [list(row) for row in line._rows]
    line.remove(everyone[10_000])
    assert sum(row != before for row, before in zip(line._rows, rows, strict=True)) == 1
    assert max(map(len, line._rows)) <= 2 * waiting._ROW
