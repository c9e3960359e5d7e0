"""What is made of how many tokens each expert computed."""

from __future__ import annotations

import pickle

import pytest

from jaxinfer.expert_load import ExpertLoad

LOAD = ExpertLoad((1, 4), ((6, 2, 0, 0), (1, 1, 1, 1)), 9)


def test_imbalance_is_the_busiest_over_the_mean() -> None:
    assert LOAD.total == 12
    assert LOAD.imbalance == (3.0, 1.0)
    assert LOAD.overall_imbalance == pytest.approx((6 + 1) / (2 + 1))
    assert LOAD.of_devices(2) == ExpertLoad((1, 4), ((8, 0), (2, 2)), 9)
    assert LOAD.of_devices(2).imbalance == (2.0, 1.0)
    assert LOAD.of_devices(1).imbalance == (1.0, 1.0)
    assert pickle.loads(pickle.dumps(LOAD)) == LOAD


def test_nothing_has_no_imbalance() -> None:
    for empty in (ExpertLoad(), ExpertLoad.zeros([(0, 3), (2, 2)])):
        assert empty.total == 0
        assert set(empty.imbalance) <= {None}
        assert empty.overall_imbalance is None
    assert ExpertLoad.zeros([(0, 3), (2, 2)]) == ExpertLoad((0, 2), ((0, 0, 0), (0, 0)), 0)


def test_differences_and_sums() -> None:
    later = ExpertLoad((1, 4), ((7, 2, 5, 0), (1, 2, 4, 7)), 11)
    assert later.since(LOAD) == ExpertLoad((1, 4), ((1, 0, 5, 0), (0, 1, 3, 6)), 11)
    assert later.since(LOAD).plus(LOAD) == ExpertLoad((1, 4), later.tokens, 11)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="devices is 3; it must divide the 4 experts"):
        LOAD.of_devices(3)
    with pytest.raises(ValueError, match=r"layers with experts are \(1, 4\) here and \(\) there"):
        LOAD.since(ExpertLoad())
