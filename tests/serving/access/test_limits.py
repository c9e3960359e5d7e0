"""Rates, debts and concurrency, on a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.access.keys import KeySet, parse
from serving.access.limits import Exceeded, Limiter, TokenBucket


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def key_set(tenant: str = "", key: str = "") -> KeySet:
    head = '[[keys]]\nid = "0123456789ab"\nsha256 = "' + "0" * 64 + '"\ntenant = "a"\nroles = ["infer"]\n'
    return parse(f"{head}{key}\n[tenants.a]\n{tenant}", "keys")


def make(tenant: str = "", key: str = ""):
    clock = Clock()
    limiter = Limiter(clock)
    found = key_set(tenant, key)
    limiter.configure(found)
    return limiter, found.caller(found.keys["0123456789ab"]), clock


@pytest.mark.parametrize("where", ["tenant", "key"])
def test_requests_a_minute(where: str) -> None:
    limiter, caller, clock = make(**{where: "requests_per_minute = 3"})
    for _ in range(3):
        limiter.check(caller, 1, 1, 10)
        limiter.begin(caller, 1, 10)
    with pytest.raises(Exceeded, match="has used its 3 requests a minute") as refused:
        limiter.check(caller, 1, 1, 10)
    assert refused.value.seconds == pytest.approx(20)
    clock.now += 19.9
    with pytest.raises(Exceeded):
        limiter.check(caller, 1, 1, 10)
    clock.now += 0.2
    limiter.check(caller, 1, 1, 10)


def test_tokens_are_charged_when_they_are_there() -> None:
    limiter, caller, clock = make("tokens_per_minute = 600")
    limiter.check(caller, 1, 1, 5000)  # more than a minute's worth needs a full bucket, and leaves a debt
    limiter.begin(caller, 1, 5000)
    limiter.use(caller, 100)
    with pytest.raises(Exceeded, match="600 tokens a minute") as refused:
        limiter.check(caller, 1, 1, 10)
    assert refused.value.seconds == pytest.approx((5100 - 600 + 10) / 10)
    clock.now += refused.value.seconds + 0.01
    limiter.check(caller, 1, 1, 10)


def test_concurrency_counts_sequences() -> None:
    limiter, caller, _ = make(key="max_concurrency = 4")
    limiter.begin(caller, 3, 1)
    limiter.check(caller, 1, 1, 1)
    with pytest.raises(Exceeded, match="3 sequences under way and may have 4") as refused:
        limiter.check(caller, 1, 2, 1)
    assert refused.value.seconds is None
    limiter.end(caller, 3)
    limiter.check(caller, 1, 4, 1)
    with pytest.raises(Exceeded) as refused:
        limiter.check(caller, 1, 5, 1)
    assert refused.value.never


def test_more_prompts_than_a_minute_has_are_refused_for_good() -> None:
    limiter, caller, _ = make("requests_per_minute = 3")
    with pytest.raises(Exceeded) as refused:
        limiter.check(caller, 4, 4, 1)
    assert refused.value.never


def test_use_survives_another_reading_of_the_file() -> None:
    limiter, caller, _ = make("requests_per_minute = 2\nmax_concurrency = 1")
    limiter.begin(caller, 1, 1)
    limiter.configure(key_set("requests_per_minute = 4\nmax_concurrency = 1"))
    with pytest.raises(Exceeded, match="under way"):
        limiter.check(caller, 1, 1, 1)
    limiter.configure(key_set("requests_per_minute = 4"))
    limiter.check(caller, 3, 3, 1)
    with pytest.raises(Exceeded):
        limiter.check(caller, 4, 4, 1)
    limiter.configure(KeySet({}, {}))  # the key is gone, its request is not
    limiter.end(caller, 1)
    limiter.configure(KeySet({}, {}))
    limiter.check(caller, 100, 100, 100)  # nobody is left to be limited: the server refuses the key


@given(
    rate=st.integers(1, 10_000),
    moves=st.lists(st.tuples(st.floats(0, 100), st.integers(1, 5000)), max_size=50),
)
def test_no_minute_gets_more_than_two_minutes_worth(rate: int, moves: list[tuple[float, int]]) -> None:
    """A bucket lets through a full one and what fills in the same minute; a single large amount is its own debt."""
    now, taken = 0.0, []
    bucket = TokenBucket(rate, now)
    for pause, amount in moves:
        now += pause
        amount = min(amount, rate)
        if bucket.wait(amount, now) == 0:
            bucket.take(amount, now)
            taken.append((now, amount))
    for start, _ in taken:
        assert sum(amount for when, amount in taken if start <= when < start + 60) <= 2 * rate + 1e-6 * rate
