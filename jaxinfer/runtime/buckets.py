"""The ladder of compiled shapes: a step is padded up to the next bucket, and nothing else is ever compiled."""

from __future__ import annotations

from typing import NamedTuple

# One executable is for admissions, so a ladder of 7 makes 8 in all: what a CPU compiles within a few seconds.
MAX_BUCKETS = {"cpu": 7}
DEFAULT_MAX_BUCKETS = 12

# Rows below which XLA:CPU's products and norms of one row depend on the row count (measured: float32 products from 4,
# norms and norm + MLP from 8); without the guarantee two rows still avoid its slow path for single-row products.
INVARIANT_ROWS = 8
FEWEST_ROWS = 2


class Bucket(NamedTuple):
    """One compiled shape: T tokens in at most S rows."""

    tokens: int
    rows: int

    @property
    def name(self) -> str:
        return f"step[{self.tokens} tokens, {self.rows} rows]"


def make_ladder(max_tokens: int, max_rows: int, *, platform: str, batch_invariant: bool) -> tuple[Bucket, ...]:
    """Buckets by powers of two up to `max_tokens`, at most as many as the platform should compile.

    A row has at least one token, so rows never exceed tokens and one axis suffices.
    """
    fewest = INVARIANT_ROWS if batch_invariant else FEWEST_ROWS
    sizes = [fewest]
    while sizes[-1] < max_tokens:
        sizes.append(min(2 * sizes[-1], max(max_tokens, fewest)))
    limit = MAX_BUCKETS.get(platform, DEFAULT_MAX_BUCKETS)
    drop = -2
    while len(sizes) > limit:
        # Thin the top first: prefill fills the largest bucket, decode lives in the small ones.
        del sizes[drop]
        drop = drop - 1 if -drop < len(sizes) - 1 else -2
    return tuple(Bucket(size, min(size, max(max_rows, fewest))) for size in sizes)


def pick_bucket(ladder: tuple[Bucket, ...], tokens: int) -> Bucket:
    """The smallest bucket that holds `tokens`. Raises ValueError outside the ladder: nothing compiles on demand."""
    for bucket in ladder:
        if tokens <= bucket.tokens:
            return bucket
    raise ValueError(f"a step of {tokens} tokens is outside the ladder {[b.tokens for b in ladder]}")
