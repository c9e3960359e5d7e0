"""The ladders of compiled shapes: a step is padded up to the next bucket, and nothing else is ever compiled.

Each bucket costs seconds of start-up, a missing one costs every step that falls into the gap. On a CPU the ladder is
the shortest one whose padding takes less than `MOST_WASTE` of a usual step's time, and of all of that length the one
with the least expected time:

- A step of T tokens takes FIXED_TOKENS + T: its weights are read once, which takes as long as the arithmetic of some
  ten tokens (measured on AVX2 cores, 2816 x 1024: int8 8, bfloat16 10, float32 27), and every token adds the same.
- Half of all steps decode 1 to S rows, small numbers more often (log-uniform). A quarter are full of prompts, and a
  quarter end one, with any number of tokens.
- The smallest bucket always is the fewest tokens that a step has: one client alone is the most usual load.

What the floor of `INVARIANT_ROWS` adds to smaller steps is no waste here, since no ladder changes it. With a budget of
256 tokens and 64 rows that gives 8, 24, 64 and 256, of which padding is expected to take 14 %; powers of two are six,
and save 4 more.

Accelerators keep powers of two: there a step's padding costs little beside the reading of its weights, programs are
compiled beside each other, and decoding has kernels that are tuned for them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

MAX_BUCKETS = {"cpu": 7}
DEFAULT_MAX_BUCKETS = 12
MOST_WASTE = 0.15  # of a step's time, expected; at 0.25 sixteen clients would pay for 56 rows
FIXED_TOKENS = 10
USUAL_OUTPUT = 256  # tokens that a sequence generates where it may generate more

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


def fewest_rows(*, batch_invariant: bool) -> int:
    """Rows of the smallest program."""
    return INVARIANT_ROWS if batch_invariant else FEWEST_ROWS


def make_ladder(max_tokens: int, max_rows: int, *, platform: str, batch_invariant: bool) -> tuple[Bucket, ...]:
    """Buckets up to `max_tokens`, at most as many as the platform should compile.

    A row has at least one token, so rows never exceed tokens and one axis suffices.
    """
    fewest = fewest_rows(batch_invariant=batch_invariant)
    largest = max(max_tokens, fewest)
    if platform == "cpu":
        sizes = _least_time(fewest, largest, _usual_steps(largest, min(max_rows, largest)), MAX_BUCKETS[platform])
    else:
        sizes = _powers_of_two(fewest, largest, MAX_BUCKETS.get(platform, DEFAULT_MAX_BUCKETS))
    return buckets_of(sizes, max_rows, batch_invariant=batch_invariant)


def buckets_of(tokens: Sequence[int], max_rows: int, *, batch_invariant: bool) -> tuple[Bucket, ...]:
    """Buckets of these numbers of tokens, or the fewest that a step has."""
    fewest = fewest_rows(batch_invariant=batch_invariant)
    sizes = sorted({max(size, fewest) for size in tokens})
    return tuple(Bucket(size, min(size, max(max_rows, fewest))) for size in sizes)


class Work(NamedTuple):
    """What is known of a run that serves nobody else: tokens of its prompts together, tokens that a sequence generates
    at most, and sequences."""

    prompt_tokens: int
    output_tokens: int
    sequences: int


def only_bucket(work: Work, max_rows: int) -> Bucket:
    """The bucket with which the run takes the least time where it is the only one: compiling others would take longer
    than they save. Of at most 256 tokens, or `max_rows`."""
    rows = max(1, min(work.sequences, max_rows))
    decoding = -(-work.sequences // rows) * min(work.output_tokens, USUAL_OUTPUT)

    def time(tokens: int) -> int:
        return (FIXED_TOKENS + tokens) * (-(-work.prompt_tokens // tokens) + decoding)

    fewest = -(-max(rows, INVARIANT_ROWS) // 8) * 8
    return Bucket(min(range(fewest, max(fewest, 256) + 1, 8), key=time), rows)


def drawing_rows(max_rows: int, *, platform: str, batch_invariant: bool) -> tuple[int, ...]:
    """Rows of the programs that draw tokens, the last one for as many as a step has. They are few: what they take to
    compile is what a step takes."""
    fewest = fewest_rows(batch_invariant=batch_invariant)
    largest = max(max_rows, fewest)
    if platform == "cpu":
        return _least_time(fewest, largest, _decoding_steps(largest), MAX_BUCKETS[platform])
    return tuple(sorted({fewest, min(32, largest), largest}))


def pick_bucket(ladder: Sequence[Bucket], tokens: int) -> Bucket:
    """The smallest bucket that holds `tokens`. Raises ValueError outside the ladder: nothing compiles on demand."""
    for bucket in ladder:
        if tokens <= bucket.tokens:
            return bucket
    raise ValueError(f"a step of {tokens} tokens is outside the ladder {[b.tokens for b in ladder]}")


def pick_rows(counts: Sequence[int], rows: int) -> int:
    """The smallest of `counts` that holds `rows`. Raises ValueError where none does."""
    for count in counts:
        if rows <= count:
            return count
    raise ValueError(f"{rows} rows draw; programs that draw have {list(counts)} rows")


def expected_waste(sizes: Sequence[int], max_tokens: int, max_rows: int) -> float:
    """The share of a usual step's time that padding takes, where steps are padded to `sizes`, ascending."""
    return _waste(sizes, _usual_steps(max(max_tokens, sizes[0]), max_rows))


def _powers_of_two(fewest: int, largest: int, limit: int) -> tuple[int, ...]:
    sizes = [fewest]
    while sizes[-1] < largest:
        sizes.append(min(2 * sizes[-1], largest))
    drop = -2
    while len(sizes) > limit:
        # Thin the top first: prefill fills the largest bucket, decode lives in the small ones.
        del sizes[drop]
        drop = drop - 1 if -drop < len(sizes) - 1 else -2
    return tuple(sizes)


def _decoding_steps(max_rows: int) -> list[float]:
    """How often a step decodes n rows: entry n."""
    weights = [0.0] + [1 / n for n in range(1, max_rows + 1)]
    total = sum(weights)
    return [weight / total for weight in weights]


def _usual_steps(max_tokens: int, max_rows: int) -> list[float]:
    """How often a step has n tokens: entry n."""
    found = [0.0] + [0.25 / max_tokens] * max_tokens
    found[max_tokens] += 0.25
    for n, weight in enumerate(_decoding_steps(max_rows)):
        found[n] += weight / 2
    return found


def _waste(sizes: Sequence[int], steps: Sequence[float]) -> float:
    total, below = 0.0, 0
    for size in sizes:
        for n in range(below + 1, min(size, len(steps) - 1) + 1):
            total += steps[n] * (size - max(n, sizes[0])) / (FIXED_TOKENS + size)
        below = size
    return total


def _least_time(fewest: int, largest: int, steps: Sequence[float], limit: int) -> tuple[int, ...]:
    """The shortest ladder from `fewest` to `largest` with less than MOST_WASTE, or one of `limit`."""
    if fewest >= largest:
        return (largest,)
    candidates = [fewest]
    while candidates[-1] < largest:  # multiples of 8, above 64 an eighth apart
        last = candidates[-1]
        candidates.append(min(largest, (last + max(8, last // 8)) // 8 * 8))
    # What a step of each size takes, relative to one without padding: sums up to each size, so that the steps between
    # two of them are one difference.
    relative = [0.0]
    for n in range(1, largest + 1):
        relative.append(relative[-1] + steps[n] / (FIXED_TOKENS + max(n, fewest)))

    def time(low: int, high: int) -> float:
        return (FIXED_TOKENS + high) * (relative[high] - relative[low])

    for count in range(2, limit + 1):
        sizes = _best_path(candidates, count, time)
        if _waste(sizes, steps) < MOST_WASTE:
            break
    return sizes


def _best_path(candidates: Sequence[int], count: int, time: Callable[[int, int], float]) -> tuple[int, ...]:
    """At most `count` of the candidates, the first and the last among them, with the least time(low, high) in all."""
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, (candidates[0],))]  # ladders of the length so far
    best += [(float("inf"), ())] * (len(candidates) - 1)
    whole = best[0]
    for _ in range(count - 1):
        longer = list(best)
        for i, high in enumerate(candidates):
            for total, path in best[:i]:
                if path and total + time(path[-1], high) < longer[i][0]:
                    longer[i] = total + time(path[-1], high), (*path, high)
        best = longer
        whole = best[-1]
    return whole[1]
