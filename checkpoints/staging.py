"""A folder that appears whole or not at all: written under a name that no loader takes, then renamed."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from checkpoints.files import PARTIAL_SUFFIX, CheckpointError, is_converted

_REPLACED_SUFFIX = ".replaced"


@contextmanager
def staged(target: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends without an exception it becomes `target`.

    After an exception (KeyboardInterrupt too) the folder is removed. If the process is killed it stays behind as
    `.NAME.partial` and the next run for the same target clears it away. A lock on it keeps two runs apart.

    Raises CheckpointError if `target` exists and `overwrite` is False, if it is a folder that `overwrite` must not
    replace (something else than a converted checkpoint), or if another process is writing it.
    """
    target = Path(os.path.abspath(target))  # not resolved: a link must be seen as one
    partial, replaced = (target.parent / f".{target.name}{suffix}" for suffix in (PARTIAL_SUFFIX, _REPLACED_SUFFIX))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir(exist_ok=True)
    lock = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"{target}: another conversion is writing it; wait for it to end") from error
        try:
            _recover(target, replaced)
            _check_free(target, overwrite)
            _clear(partial)
            yield partial
            _sync_tree(partial)
            _put_in_place(partial, target, replaced)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    finally:
        os.close(lock)


def check_target(target: Path, overwrite: bool) -> None:
    """Raises CheckpointError when `staged` would refuse the target now; makes nothing."""
    target = Path(os.path.abspath(target))
    parent = next(folder for folder in target.parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(f"{target}: expected a place that can be written; {parent} is none")
    if target.exists() or not target.with_name(f".{target.name}{_REPLACED_SUFFIX}").exists():
        _check_free(target, overwrite)


def _check_free(target: Path, overwrite: bool) -> None:
    if not target.exists() and not target.is_symlink():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    if not overwrite:
        raise CheckpointError(f"{target}: expected no such folder; it exists: choose another, or --overwrite it")
    if not target.is_dir() or target.is_symlink() or not is_converted(target):
        raise CheckpointError(f"{target}: expected a converted checkpoint to overwrite; it is something else")


def _recover(target: Path, replaced: Path) -> None:
    """A run killed between the two renames leaves the old checkpoint under its other name: put it back."""
    if not replaced.exists():
        return
    if target.exists():
        shutil.rmtree(replaced)
    else:
        replaced.rename(target)


def _clear(folder: Path) -> None:
    for item in folder.iterdir():
        if item.is_dir() and not item.is_symlink():
            shutil.rmtree(item)
        else:
            item.unlink()


def _put_in_place(partial: Path, target: Path, replaced: Path) -> None:
    if target.exists() and any(target.iterdir()):
        target.rename(replaced)
    partial.rename(target)  # replaces an empty folder
    shutil.rmtree(replaced, ignore_errors=True)
    _sync(target.parent)


def _sync_tree(folder: Path) -> None:
    """The names become visible by the rename; a crash of the machine after it must not show empty files."""
    for root, _, files in os.walk(folder):
        for name in files:
            _sync(Path(root, name))
        _sync(Path(root))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
