"""The file of API keys: hashes and what each of them may do. The server reads it, `jaxinfer keys` writes it.

A key has 256 random bits. A slow hash such as scrypt protects what people choose, since there are few likely
passwords to try; here there is nothing to guess, so one SHA-256 is as hard to reverse, and a flood of wrong keys costs
the server microseconds instead of a core. The id in front of the secret finds the entry, so that one digest is
compared, in constant time; an unknown id is compared with a digest that no key has, and takes as long.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import hmac
import os
import re
import secrets
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from serving.access.caller import ROLES, Caller

PREFIX = "jx"
MAX_KEY_LENGTH = 256  # characters of what a client may present
_KEY = re.compile(r"jx-([0-9a-f]{12})-[A-Za-z0-9_-]{43}")
_TENANT = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_NOBODY = hashlib.sha256(b"").hexdigest()

_Positive = Annotated[int, Meta(ge=1)]
_Name = Annotated[str, Meta(pattern=_TENANT)]


class KeysError(Exception):
    """The file of keys cannot be used: one sentence."""


class KeyLimits(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Of a key or a tenant; None is no limit. max_concurrency: sequences at a time (a request has n of them)."""

    requests_per_minute: _Positive | None = None
    tokens_per_minute: _Positive | None = None
    max_concurrency: _Positive | None = None


class TenantConfig(KeyLimits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """weight: share of a busy engine. prefix_cache_group: tenants of one group share cached prefixes."""

    weight: Annotated[float, Meta(ge=0.001, le=1000)] = 1.0
    prefix_cache_group: _Name | None = None


class Key(KeyLimits, frozen=True, forbid_unknown_fields=True, kw_only=True):
    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: _Name
    roles: Annotated[list[str], Meta(min_length=1)]
    created: datetime.datetime | None = None
    expires: datetime.datetime | None = None
    disabled: bool = False


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    tenants: dict[_Name, TenantConfig] = {}
    keys: list[Key] = []


@dataclass(frozen=True)
class KeySet:
    """What a file says."""

    tenants: Mapping[str, TenantConfig]
    keys: Mapping[str, Key]

    def find(self, presented: str) -> tuple[Caller, Key] | None:
        """The owner of a key; None when it is wrong, disabled or expired."""
        match = _KEY.fullmatch(presented) if len(presented) <= MAX_KEY_LENGTH else None
        key = self.keys.get(match[1]) if match is not None else None
        digest = digest_of(presented)
        right = hmac.compare_digest(digest, _NOBODY if key is None else key.sha256)
        if key is None or not right or key.disabled or _expired(key):
            return None
        return self.caller(key), key

    def caller(self, key: Key) -> Caller:
        tenant = self.tenants.get(key.tenant, TenantConfig())
        # The kinds in front keep a group from being some tenant's own cache.
        own = f"tenant/{key.tenant}"
        scope = own if tenant.prefix_cache_group is None else f"group/{tenant.prefix_cache_group}"
        return Caller(key.tenant, key.id, frozenset(key.roles), scope, tenant.weight)


def _expired(key: Key) -> bool:
    if key.expires is None:
        return False
    return key.expires <= datetime.datetime.now(key.expires.tzinfo)


def digest_of(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def is_one_of(presented: str, digests: Sequence[str]) -> bool:
    """All are compared, each in constant time."""
    if len(presented) > MAX_KEY_LENGTH:
        return False
    digest = digest_of(presented)
    found = [hmac.compare_digest(digest, each) for each in digests]
    return any(found)


def parse(text: str, where: str) -> KeySet:
    """Raises KeysError naming what is wrong; no secret is in the file, so none is in the message."""
    try:
        found = msgspec.convert(tomllib.loads(text), _File)
    except tomllib.TOMLDecodeError as error:
        raise KeysError(f"{where} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise KeysError(f"{where}: {error}") from error
    keys: dict[str, Key] = {}
    for i, key in enumerate(found.keys):
        wrong = [role for role in key.roles if role not in ROLES]
        if wrong:
            raise KeysError(f"{where}: keys[{i}].roles has {wrong[0]!r}; roles are {' and '.join(ROLES)}")
        if key.id in keys:
            raise KeysError(f"{where}: keys[{i}].id is {key.id!r}, as another key's")
        keys[key.id] = key
    return KeySet(found.tenants, keys)


def load(path: Path) -> KeySet:
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise KeysError(f"the file of keys {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise KeysError(f"{path} is no UTF-8: {error}") from error


# -- writing ----------------------------------------------------------------------------------------------------------


def add_key(
    path: Path, tenant: str, roles: Sequence[str], limits: KeyLimits, expires: datetime.datetime | None = None
) -> tuple[str, str]:
    """Makes a key and appends its hash: (the key, its id). The key itself is kept nowhere. Raises KeysError."""
    key_id = secrets.token_hex(6)
    key = f"{PREFIX}-{key_id}-{secrets.token_urlsafe(32)}"
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    values: dict[str, Any] = {
        "id": key_id,
        "sha256": digest_of(key),
        "tenant": tenant,
        "roles": list(roles),
        "created": now,
        "expires": expires,
        **{name: getattr(limits, name) for name in KeyLimits.__struct_fields__},
    }
    entry = "[[keys]]\n" + "".join(f"{name} = {_toml(value)}\n" for name, value in values.items() if value is not None)
    try:
        with _locked(path):
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            gap = "" if not before else "\n" if before.endswith("\n") else "\n\n"
            text = before + gap + entry
            parse(text, str(path))
            _replace(path, text)
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"the file of keys {path} cannot be written: {error}") from error
    return key, key_id


def _toml(value: Any) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)  # names are checked: nothing in them needs escaping


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time."""
    lock = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _replace(path: Path, text: str) -> None:
    """Whole or not at all: a server that reads at this moment sees the old file or the new one."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    with open(os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, mode), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)
