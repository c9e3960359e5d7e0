"""The check that every call passes: whose key, which role, within which limits; and the record of what was refused."""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from serving.access import keys
from serving.access.caller import ADMIN, ANYONE, Caller
from serving.access.limits import Exceeded, Limiter
from serving.access.tls import Tls, TlsConfig, TlsError, is_loopback
from serving.access.watch import Watched
from serving.errors import DEFAULT_RETRY_MS, Refusal, exhausted

_LOG = logging.getLogger("serving.access")
_AUDIT = logging.getLogger("serving.audit")
_REFRESH_SECONDS = 1.0
GIVEN = Caller(key="--api-key")  # whoever has a key that was given on the command line may do everything


class AccessError(Exception):
    """The server must not start like this: one sentence."""


@dataclass(frozen=True)
class AccessConfig:
    """keys: file of API keys. given: keys as they are, of one operator. Without either everybody is let in."""

    keys: Path | None = None
    tls: TlsConfig | None = None
    given: tuple[str, ...] = field(default=(), repr=False)

    def check(self, hosts: Iterable[str]) -> None:
        """Raises AccessError: a key that crosses a network in the clear is no secret."""
        if (self.keys is None and not self.given) or self.tls is not None:
            return
        for host in hosts:
            if not is_loopback(host):
                raise AccessError(
                    f"host is {host}; with API keys it must be a loopback address, "
                    "or TLS is needed (--tls-cert and --tls-key)"
                )


class Access:
    """Raises AccessError. Without any key every call is ANYONE's and nothing is limited.

    audit_sinks: each gets every entry of the audit log, beside the log itself.
    """

    def __init__(self, config: AccessConfig | None = None) -> None:
        config = config or AccessConfig()
        self.limiter = Limiter()
        self._path = config.keys
        self._keys: keys.KeySet | None = None
        self._given = tuple(map(keys.digest_of, config.given))
        self.audit_sinks: list[Callable[[dict[str, Any]], None]] = []
        try:
            self.tls = None if config.tls is None else Tls(config.tls)
            if config.keys is not None:
                self._file = Watched(config.keys)
                self._use(keys.load(config.keys))
        except (keys.KeysError, TlsError) as error:
            raise AccessError(str(error)) from error

    def _use(self, found: keys.KeySet) -> None:
        self._keys = found
        self.limiter.configure(found)

    @property
    def open(self) -> bool:
        """Nobody needs a key."""
        return self._keys is None and not self._given

    # -- who ------------------------------------------------------------------------------------------------------

    def caller(self, presented: str | None) -> Caller:
        """Whose key this is. Raises Refusal. The message never quotes what was presented."""
        if self.open:
            return ANYONE
        if not presented:
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "no API key is given; it goes into Authorization: Bearer")
        found = None if self._keys is None else self._keys.find(presented)
        if found is not None:
            return found[0]
        if not keys.is_one_of(presented, self._given):
            raise Refusal(grpc.StatusCode.UNAUTHENTICATED, "the API key is not one of this server's, or has expired")
        return GIVEN

    def permit(self, caller: Caller, role: str | None) -> None:
        """Raises Refusal unless the caller has the role; None: any will do."""
        if role is not None and role not in caller.roles:
            has = " and ".join(sorted(caller.roles))
            message = f"the API key's roles are {has}; this call needs {role}"
            raise Refusal(grpc.StatusCode.PERMISSION_DENIED, message)

    def admit(self, presented: str | None, role: str | None, server: str, endpoint: str) -> Caller:
        """Whose key this is, where it may make this call; refusals and admins' calls are audited. Raises Refusal."""
        caller = None
        try:
            caller = self.caller(presented)
            self.permit(caller, role)
        except Refusal as refusal:
            self.audit_refusal(server, endpoint, refusal, caller)
            raise
        if role == ADMIN:
            self.audit("admin call", server, endpoint, caller)
        return caller

    # -- how much -------------------------------------------------------------------------------------------------

    def check(self, caller: Caller, requests: int, sequences: int, prompt_tokens: int) -> None:
        """Raises Refusal when the caller has no more to spend now. Takes nothing."""
        try:
            self.limiter.check(caller, requests, sequences, prompt_tokens)
        except Exceeded as exceeded:
            raise _refusal(exceeded) from exceeded

    # -- what was done --------------------------------------------------------------------------------------------

    def audit(self, event: str, server: str, endpoint: str, caller: Caller | None = None, code: str = "") -> None:
        """event: "admin call" or "refused". Nothing of the call's content is in it."""
        fields = {"door": server, "endpoint": endpoint}
        if caller is not None:
            fields |= {"tenant": caller.tenant, "key": caller.key}
        if code:
            fields["code"] = code
        _AUDIT.log(logging.WARNING if code else logging.INFO, event, extra={"fields": fields})
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        for sink in self.audit_sinks:
            sink({"time": now, "event": event, **fields})

    def audit_refusal(self, server: str, endpoint: str, refusal: Refusal, caller: Caller | None = None) -> None:
        """For refusals that this module makes; others are no matter of access."""
        if not self.open and refusal.code in _OURS:
            self.audit("refused", server, endpoint, caller, refusal.code.name)

    # -- change ---------------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Takes up changed files, for ever."""
        while True:
            await asyncio.sleep(_REFRESH_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """A broken file changes nothing and is an error in the log."""
        if self.tls is not None:
            self.tls.refresh()
        if self._path is None or not self._file.changed():
            return
        try:
            self._use(keys.load(self._path))
        except keys.KeysError as error:
            _LOG.error("the keys stay as they were: %s", error)
        else:
            assert self._keys is not None
            _LOG.info("the file of keys was read again: %d keys", len(self._keys.keys))


_OURS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.RESOURCE_EXHAUSTED)


def _refusal(exceeded: Exceeded) -> Refusal:
    if exceeded.never:
        return Refusal(grpc.StatusCode.INVALID_ARGUMENT, exceeded.message)
    if exceeded.seconds is None:
        return exhausted(exceeded.message, DEFAULT_RETRY_MS, "concurrency_limit_exceeded")
    return exhausted(exceeded.message, max(1, math.ceil(1000 * exceeded.seconds)), "rate_limit_exceeded")
