"""Whom a request is from, as every part of the server behind the servers sees it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

DEFAULT_TENANT = "default"
INFER, ADMIN = "infer", "admin"
ROLES = (INFER, ADMIN)


@dataclass(frozen=True, slots=True)
class Caller:
    """The owner of the key that a request came with. Without keys everybody is ANYONE.

    key: the key's id, which is no secret. scope: requests share cached prefixes only within it; None: as their
    cache_salt alone says. weight: the tenant's share of a busy engine, relative to the others'.
    """

    tenant: str = DEFAULT_TENANT
    key: str = ""
    roles: frozenset[str] = frozenset(ROLES)
    scope: str | None = None
    weight: float = 1.0

    def salt(self, given: str) -> str:
        """The salt of the prefix cache's root. The length in front keeps (scope, salt) from reading like another."""
        return given if self.scope is None else f"{len(self.scope)}:{self.scope}{given}"


ANYONE = Caller()

# Of the call that the running task answers. Both servers answer each call in a task of its own.
CALLER: ContextVar[Caller] = ContextVar("caller", default=ANYONE)
