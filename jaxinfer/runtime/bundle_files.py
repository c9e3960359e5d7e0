"""A bundle on disk: a folder of executables and the manifest that says what they are. No jax, and nothing is unpickled.

    manifest.json      {"format_version": 1, "facts": {...}, "weight_bytes": n, "pool_bytes": n, "executables": [...]}
    000.executable     one for each entry {"name": ..., "file": ..., "bytes": n, "sha256": ...}

Whoever can write to a bundle can run code in the engine, and the manifest's hashes do not change that: they find files
that are torn, swapped or from another bundle. So folder and files must belong to the user or to root, and nobody else
may write to them. The folder is opened once and its files are found through it, so that what is checked is what is
read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxinfer.config import ConfigError

MANIFEST_FILE = "manifest.json"
FORMAT_VERSION = 1
MAX_MANIFEST_BYTES = 4 << 20
_FOLDER_MODE, _FILE_MODE = 0o755, 0o644  # before the umask, which only takes away
_SHARED_WRITE = stat.S_IWGRP | stat.S_IWOTH


class BundleRefused(Exception):
    """A bundle, or one of its files, may not or cannot be used; the message says why."""


@dataclass(frozen=True)
class Entry:
    """One executable. name: what a runner calls it. file: in the folder. bytes, sha256: of the file."""

    name: str
    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """facts: what the executables were made for and with. weight_bytes, pool_bytes: what they need in the memory of all
    devices together."""

    facts: Mapping[str, Any]
    weight_bytes: int
    pool_bytes: int
    executables: tuple[Entry, ...]


class BundleFolder:
    """An opened bundle, whose manifest has been read. Use as a context manager, or call `close`.

    Raises ConfigError where there is no folder; BundleRefused for one, or a manifest in it, that somebody else could
    have written, that cannot be read or that is no manifest. `read` may be called from several threads.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = check_folder(path)
        try:
            self._folder = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise BundleRefused(f"{self.path} cannot be read: {error}") from error
        try:
            _check_owner(str(self.path), os.fstat(self._folder))
            self.manifest = parse_manifest(self._contents(MANIFEST_FILE, MAX_MANIFEST_BYTES))
        except BaseException:
            self.close()
            raise

    def read(self, entry: Entry) -> bytes:
        """The bytes of an executable, which are those that the manifest means. Raises BundleRefused."""
        data = self._contents(entry.file, entry.bytes)
        if len(data) != entry.bytes:
            raise BundleRefused(f"{entry.file} has {len(data)} bytes; the manifest says {entry.bytes}")
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleRefused(f"{entry.file} is not the file that the manifest's sha256 was made of")
        return data

    def _contents(self, name: str, most: int) -> bytes:
        """A file's bytes, at most one more than `most`."""
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self._folder)
        except OSError as error:
            raise BundleRefused(f"{name} cannot be read: {error.strerror or error}") from error
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise BundleRefused(f"{name} is not a plain file")
            _check_owner(name, found)
            try:
                return file.read(most + 1)
            except OSError as error:
                raise BundleRefused(f"{name} cannot be read: {error.strerror or error}") from error

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def __enter__(self) -> BundleFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_folder(path: str | os.PathLike[str]) -> Path:
    """The folder that is said to be a bundle. Raises ConfigError where there is none: a slip of the pen, which is told
    at once, and not a bundle that no longer fits."""
    try:
        folder = Path(path).expanduser()
        if folder.is_dir():
            return folder
    except (OSError, RuntimeError, ValueError) as error:  # an unknown user's home, a name that no file can have
        raise ConfigError(f"bundle is {str(path)!r:.200}; there cannot be such a folder: {error}") from error
    raise ConfigError(f"bundle is {str(path)!r:.200}; it must be a folder that `jaxinfer compile` wrote")


def _check_owner(name: str, found: os.stat_result) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise BundleRefused(
            f"{name} belongs to user {found.st_uid}; it must belong to user {os.geteuid()}, who runs this, or to root"
        )
    if found.st_mode & _SHARED_WRITE:
        who = "everybody" if found.st_mode & stat.S_IWOTH else "its group"
        raise BundleRefused(f"{name} may be written by {who}; a bundle is code, so chmod go-w it if it is yours")


def parse_manifest(data: bytes) -> Manifest:
    """Raises BundleRefused naming what is wrong."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise BundleRefused(f"{MANIFEST_FILE} has more than {MAX_MANIFEST_BYTES} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BundleRefused(f"{MANIFEST_FILE} is not JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format_version") != FORMAT_VERSION:
        version = found.get("format_version") if isinstance(found, dict) else None
        raise BundleRefused(f"{MANIFEST_FILE}: format_version is {version!r:.80}; it must be {FORMAT_VERSION}")
    known = {"format_version", "facts", "weight_bytes", "pool_bytes", "executables"}
    if found.keys() != known:
        raise BundleRefused(f"{MANIFEST_FILE} has {sorted(found)}; it must have {sorted(known)}")
    if not isinstance(found["facts"], dict):
        raise BundleRefused(f"{MANIFEST_FILE}: facts is {found['facts']!r:.80}; it must be an object")
    for name in ("weight_bytes", "pool_bytes"):
        if not _is_count(found[name]):
            raise BundleRefused(f"{MANIFEST_FILE}: {name} is {found[name]!r:.80}; it must be a number of bytes")
    if not isinstance(found["executables"], list) or not found["executables"]:
        raise BundleRefused(f"{MANIFEST_FILE}: executables is {found['executables']!r:.80}; it must be a list of some")
    entries = tuple(_parse_entry(i, entry) for i, entry in enumerate(found["executables"]))
    names = [entry.name for entry in entries]
    if len(set(names)) != len(names):
        raise BundleRefused(f"{MANIFEST_FILE}: two executables have one name")
    return Manifest(found["facts"], found["weight_bytes"], found["pool_bytes"], entries)


def _parse_entry(index: int, entry: Any) -> Entry:
    where = f"{MANIFEST_FILE}: executables[{index}]"
    if not isinstance(entry, dict) or entry.keys() != {"name", "file", "bytes", "sha256"}:
        raise BundleRefused(f"{where} is {entry!r:.80}; it must be an object of name, file, bytes and sha256")
    for key in ("name", "file", "sha256"):
        if not isinstance(entry[key], str):
            raise BundleRefused(f"{where}.{key} is {entry[key]!r:.80}; it must be a string")
    if not entry["file"].isprintable() or "/" in entry["file"] or entry["file"] in ("", ".", "..", MANIFEST_FILE):
        raise BundleRefused(f"{where}.file is {entry['file']!r:.80}; it must be the name of a file in the bundle")
    if not _is_count(entry["bytes"]):
        raise BundleRefused(f"{where}.bytes is {entry['bytes']!r:.80}; it must be a number of bytes")
    return Entry(**entry)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def difference(made_with: Any, here: Any, name: str = "") -> str | None:
    """The first fact that differs between a manifest's facts and those of this engine, in words; None: equal."""
    if isinstance(made_with, Mapping) and isinstance(here, Mapping):
        for key in [*here, *(key for key in made_with if key not in here)]:
            inner = difference(made_with.get(key), here.get(key), f"{name}.{key}" if name else str(key))
            if inner is not None:
                return inner
        return None
    if made_with == here and type(made_with) is type(here):
        return None
    if isinstance(made_with, list) and isinstance(here, list) and all(isinstance(x, str) for x in made_with + here):
        lost, new = sorted(set(made_with) - set(here)), sorted(set(here) - set(made_with))
        parts = [f"{' '.join(words)} {how}" for words, how in ((lost, "only there"), (new, "only here")) if words]
        return f"{name} differ between where the bundle was made and here: {', '.join(parts) or 'their order'}"
    return f"{name} is {here!r:.80} here; the bundle was made for {made_with!r:.80}"


def check_out(path: Path, *, overwrite: bool) -> None:
    """Whether a bundle can be written to `path`. Raises BundleRefused; what is overwritten must be a bundle itself."""
    if path.is_symlink() or path.exists():
        if not overwrite:
            raise BundleRefused(f"{path} is there already; give another, or --overwrite")
        if path.is_symlink() or not (path / MANIFEST_FILE).is_file():
            raise BundleRefused(f"{path} is no bundle; what is overwritten must be one")
    parent = path.absolute().parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise BundleRefused(f"{path} cannot be made: {parent} is no folder that may be written")


def write_bundle(
    path: Path,
    facts: Mapping[str, Any],
    executables: Iterable[tuple[str, bytes]],
    *,
    weight_bytes: int,
    pool_bytes: int,
    overwrite: bool = False,
    check: Callable[[Path], None] | None = None,
) -> Manifest:
    """Writes a bundle, which is there whole or not at all.

    executables: (name, bytes) of each. check: is shown the bundle before it is where it belongs. Nobody but the user
    may write to what is written, whatever the umask. Raises BundleRefused (see `check_out`), OSError, and what
    `executables` and `check` raise.
    """
    check_out(path, overwrite=overwrite)
    partial = path.absolute().with_name(f".{path.name}.{os.getpid()}.partial")
    partial.mkdir(mode=_FOLDER_MODE)
    try:
        entries = []
        for index, (name, data) in enumerate(executables):
            file = f"{index:03}.executable"
            _write(partial / file, data)
            entries.append(Entry(name, file, len(data), hashlib.sha256(data).hexdigest()))
        manifest = Manifest(facts, weight_bytes, pool_bytes, tuple(entries))
        described = {
            "format_version": FORMAT_VERSION,
            "facts": dict(facts),
            "weight_bytes": weight_bytes,
            "pool_bytes": pool_bytes,
            "executables": [asdict(entry) for entry in entries],
        }
        _write(partial / MANIFEST_FILE, (json.dumps(described, indent=1) + "\n").encode())
        if check is not None:
            check(partial)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return manifest


def _write(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _FILE_MODE)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
