"""What a tenant and a key may use: token buckets for rates, a count for concurrency. On the event loop; never waits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from serving.access.caller import Caller
from serving.access.keys import Key, KeyLimits, KeySet, TenantConfig

_MINUTE = 60.0


class TokenBucket:
    """Fills at `rate` a minute up to a minute's worth. What was used may take it below zero: tokens are counted when
    they are there, so that nobody pays for what a guess expected; the debt is waited for."""

    def __init__(self, rate: int, now: float) -> None:
        self.rate = rate
        self._level, self._time = float(rate), now

    def change(self, rate: int, now: float) -> None:
        """Another rate from now on; what was used stays used."""
        used = self.rate - self._refilled(now)
        self.rate, self._level, self._time = rate, min(float(rate), rate - used), now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; an amount above a minute's worth needs the full bucket."""
        missing = min(amount, self.rate) - self._refilled(now)
        return max(0.0, missing * _MINUTE / self.rate)

    def take(self, amount: float, now: float) -> None:
        self._level, self._time = self._refilled(now) - amount, now

    def _refilled(self, now: float) -> float:
        return min(float(self.rate), self._level + (now - self._time) * self.rate / _MINUTE)


@dataclass(eq=False)  # an exception is changed while it is on its way
class Exceeded(Exception):
    """A limit does not allow it now. seconds: until it may; None: until something ends. never: not even later."""

    message: str
    seconds: float | None = None
    never: bool = False


class Account:
    """One tenant's or one key's use."""

    def __init__(self, name: str, limits: KeyLimits, now: float) -> None:
        self.name = name
        self.open = 0  # sequences
        self._limits = KeyLimits()
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.set(limits, now)

    def set(self, limits: KeyLimits, now: float) -> None:
        self._requests = _bucket(self._requests, limits.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, limits.tokens_per_minute, now)
        self._limits = limits

    def check(self, requests: int, sequences: int, tokens: int, now: float) -> None:
        """Raises Exceeded."""
        most = self._limits.max_concurrency
        if most is not None and sequences > most:
            message = f"the request has {sequences} sequences; {self.name} may have {most} at a time"
            raise Exceeded(message, never=True)
        if self._requests is not None and requests > self._requests.rate:
            message = f"the request has {requests} prompts; {self.name} may send {self._requests.rate} a minute"
            raise Exceeded(message, never=True)
        if most is not None and self.open + sequences > most:
            raise Exceeded(f"{self.name} has {self.open} sequences under way and may have {most} at a time")
        for bucket, amount, what in ((self._requests, requests, "requests"), (self._tokens, tokens, "tokens")):
            seconds = 0.0 if bucket is None else bucket.wait(amount, now)
            if bucket is not None and seconds > 0:
                raise Exceeded(f"{self.name} has used its {bucket.rate} {what} a minute", seconds)

    def begin(self, sequences: int, tokens: int, now: float) -> None:
        self.open += sequences
        if self._requests is not None:
            self._requests.take(1, now)
        self.use(tokens, now)

    def use(self, tokens: int, now: float) -> None:
        if self._tokens is not None:
            self._tokens.take(tokens, now)


def _bucket(before: TokenBucket | None, rate: int | None, now: float) -> TokenBucket | None:
    if rate is None:
        return None
    if before is None:
        return TokenBucket(rate, now)
    if before.rate != rate:
        before.change(rate, now)
    return before


class Limiter:
    """Accounts of tenants and keys. They live on when the file of keys is read again."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[str, Account] = {}
        self._keys: dict[str, Account] = {}

    def configure(self, keys: KeySet) -> None:
        now = self._clock()
        names = {key.tenant for key in keys.keys.values()}
        for name in names:
            limits = keys.tenants.get(name, TenantConfig())
            _set(self._tenants, name, f"tenant {name!r}", limits, now)
        for key in keys.keys.values():
            _set(self._keys, key.id, f"key {key.id}", key, now)
        # Running requests of a key that is gone still end; their accounts go when nothing is open.
        for accounts, kept in ((self._tenants, names), (self._keys, set(keys.keys))):
            for name in [n for n, account in accounts.items() if n not in kept and not account.open]:
                del accounts[name]

    def _accounts(self, caller: Caller) -> tuple[Account, ...]:
        found = self._tenants.get(caller.tenant), self._keys.get(caller.key)
        return tuple(account for account in found if account is not None)

    def check(self, caller: Caller, requests: int, sequences: int, tokens: int) -> None:
        """Raises Exceeded when the caller may not begin this now. Takes nothing."""
        now = self._clock()
        for account in self._accounts(caller):
            account.check(requests, sequences, tokens, now)

    def begin(self, caller: Caller, sequences: int, prompt_tokens: int) -> None:
        """One request that was checked."""
        now = self._clock()
        for account in self._accounts(caller):
            account.begin(sequences, prompt_tokens, now)

    def use(self, caller: Caller, tokens: int) -> None:
        """Tokens that a client got."""
        now = self._clock()
        for account in self._accounts(caller):
            account.use(tokens, now)

    def end(self, caller: Caller, sequences: int) -> None:
        for account in self._accounts(caller):
            account.open -= sequences


def _set(accounts: dict[str, Account], name: str, shown: str, limits: TenantConfig | Key, now: float) -> None:
    if name in accounts:
        accounts[name].set(limits, now)
    else:
        accounts[name] = Account(shown, limits, now)
