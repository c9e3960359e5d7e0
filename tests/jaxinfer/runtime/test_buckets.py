"""The ladder of compiled shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.runtime.buckets import (
    INVARIANT_ROWS,
    MAX_BUCKETS,
    Bucket,
    Work,
    buckets_of,
    drawing_rows,
    expected_waste,
    make_ladder,
    only_bucket,
    pick_bucket,
    pick_rows,
)


def test_defaults_on_cpu() -> None:
    ladder = make_ladder(256, 64, platform="cpu", batch_invariant=True)
    assert [b.tokens for b in ladder] == [8, 24, 64, 256]
    assert [b.rows for b in ladder] == [8, 24, 64, 64]
    assert drawing_rows(64, platform="cpu", batch_invariant=True) == (8, 24, 64)
    assert [b.tokens for b in make_ladder(2048, 256, platform="gpu", batch_invariant=True)][-3:] == [512, 1024, 2048]


@given(st.integers(1, 10_000), st.integers(1, 512), st.sampled_from(["cpu", "gpu", "tpu"]), st.booleans())
def test_every_plan_finds_a_bucket(tokens: int, rows: int, platform: str, invariant: bool) -> None:
    rows = min(rows, tokens)
    ladder = make_ladder(tokens, rows, platform=platform, batch_invariant=invariant)
    assert len(ladder) <= MAX_BUCKETS.get(platform, 12)
    assert [b.tokens for b in ladder] == sorted({b.tokens for b in ladder})
    assert ladder[-1].tokens >= tokens
    if invariant:
        assert ladder[0].tokens >= INVARIANT_ROWS
        assert ladder[0].rows >= INVARIANT_ROWS
    for size in {1, rows, tokens}:
        bucket = pick_bucket(ladder, size)
        assert bucket.tokens >= size
        assert bucket.rows >= min(size, rows)  # a plan has at most as many rows as tokens and as slots


@given(st.integers(8, 4096), st.integers(1, 256))
def test_a_cpu_wastes_less_than_a_quarter(tokens: int, rows: int) -> None:
    rows = min(rows, tokens)
    sizes = [b.tokens for b in make_ladder(tokens, rows, platform="cpu", batch_invariant=True)]
    assert expected_waste(sizes, tokens, rows) < 0.25


def test_waste_is_the_share_of_a_steps_time() -> None:
    """One row in steps of 8 or 40 tokens: the floor is no waste, and of 10 + 40 the 32 more are."""
    assert expected_waste((8,), 8, 8) == 0
    # Half of the steps decode one row; of the other half 5/8 have 40 tokens, and each number from 1 on has 1/80.
    assert expected_waste((8, 40), 40, 1) == pytest.approx(sum(40 - n for n in range(9, 40)) / 50 / 160)


def test_a_better_ladder_of_the_same_length_does_not_exist() -> None:
    """Against all others that are as long, in steps of 8 tokens."""
    sizes = [b.tokens for b in make_ladder(64, 64, platform="cpu", batch_invariant=True)]
    others = [expected_waste((8, middle, 64), 64, 64) for middle in range(16, 64, 8)]
    assert len(sizes) == 3
    # The ladder has the least time, not the least waste: they differ by little.
    assert expected_waste(sizes, 64, 64) <= min(others) * 1.05


@given(st.integers(1, 512), st.sampled_from(["cpu", "gpu"]), st.booleans())
def test_programs_that_draw(rows: int, platform: str, invariant: bool) -> None:
    counts = drawing_rows(rows, platform=platform, batch_invariant=invariant)
    assert list(counts) == sorted(set(counts))
    assert len(counts) <= 7
    assert all(pick_rows(counts, n) >= n for n in (1, rows))
    with pytest.raises(ValueError, match="rows draw; programs that draw have"):
        pick_rows(counts, counts[-1] + 1)


def test_sizes_of_ones_own() -> None:
    assert buckets_of((40, 4), 16, batch_invariant=True) == (Bucket(8, 8), Bucket(40, 16))
    assert buckets_of((4,), 2, batch_invariant=False) == (Bucket(4, 2),)


@pytest.mark.parametrize(
    ("work", "bucket"),
    [
        (Work(5, 16, 1), Bucket(8, 1)),  # one client: nothing is gained by more than it needs
        (Work(500, 256, 1), Bucket(8, 1)),
        (Work(4000, 4, 1), Bucket(80, 1)),  # a long prompt and a short answer: 54 steps of 80 instead of 504 of 8
        (Work(40, 256, 10), Bucket(16, 10)),
        (Work(4000, 10**9, 1000), Bucket(64, 64)),
    ],
)
def test_the_only_bucket_of_an_offline_run(work: Work, bucket: Bucket) -> None:
    assert only_bucket(work, 64) == bucket


@given(st.integers(1, 5000), st.integers(1, 1000), st.integers(1, 200))
def test_no_other_bucket_takes_less_time(prompt: int, output: int, sequences: int) -> None:
    chosen = only_bucket(Work(prompt, output, sequences), 64)
    waves = -(-sequences // chosen.rows) * min(output, 256)
    times = {t: (10 + t) * (-(-prompt // t) + waves) for t in range(8, 257, 8) if t >= chosen.rows}
    assert times[chosen.tokens] == min(times.values())


def test_nothing_outside_the_ladder() -> None:
    with pytest.raises(ValueError, match="9 tokens is outside the ladder"):
        pick_bucket((Bucket(8, 8),), 9)
