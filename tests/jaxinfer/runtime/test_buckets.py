"""The ladder of compiled shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.runtime.buckets import INVARIANT_ROWS, MAX_BUCKETS, Bucket, make_ladder, pick_bucket


def test_defaults_on_cpu() -> None:
    ladder = make_ladder(256, 64, platform="cpu", batch_invariant=True)
    assert [b.tokens for b in ladder] == [8, 16, 32, 64, 128, 256]
    assert [b.rows for b in ladder] == [8, 16, 32, 64, 64, 64]


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


def test_nothing_outside_the_ladder() -> None:
    with pytest.raises(ValueError, match="9 tokens is outside the ladder"):
        pick_bucket((Bucket(8, 8),), 9)
