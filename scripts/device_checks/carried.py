"""What a stage takes over from those before it on the same machine: their results. Standard library only.

The folder of results may be a new one for every stage; the kept cache is not.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from device_checks.records import BEGIN, FILE, OK, SKIPPED, Record, Records, last_of_each
from device_checks.settings import Settings

_STALE_SECONDS = 6 * 3600  # another driver may be there by then


def begin(settings: Settings) -> list[Record]:
    """Writes the results of the other stages into the folder of results, for the tables and shares of this one; returns
    them. What had begun and not ended has ended with its run."""
    found: dict[tuple[str, str, int], Record] = {}
    for folder in (settings.cache, settings.out):
        path = folder / FILE
        if not path.exists() or time.time() - path.stat().st_mtime > _STALE_SECONDS:
            continue
        for record in last_of_each(Records(folder).read()):
            if record.get("stage", 0) not in (0, settings.stage):
                found[record["section"], record["case"], record["stage"]] = _ended(record)
    lines = "".join(json.dumps(record) + "\n" for record in found.values())
    _replace(settings.out / FILE, lines)
    return list(found.values())


def keep(settings: Settings) -> None:
    """Lays what is known so far where the next stage finds it."""
    path = settings.out / FILE
    if path.exists():
        _replace(settings.cache / FILE, path.read_text())


def told(records: list[Record]) -> set[str]:
    """Sections that have said something, and nothing else."""
    bad = {record["section"] for record in records if record["status"] != OK}
    return {record["section"] for record in records} - bad


def _ended(record: Record) -> Record:
    if record["status"] != BEGIN:
        return record
    return record | {"status": SKIPPED, "error": "the run ended in the middle of it"}


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(f".{os.getpid()}.new")
    new.write_text(text)
    new.replace(path)
