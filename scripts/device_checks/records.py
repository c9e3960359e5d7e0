"""The results file: one JSON object a line, appended as results come, so that nothing is lost when something dies."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from serving.append_file import AppendFile

# A case begins and then ends in one of these ways.
BEGIN, OK, FAILED, UNSUPPORTED, CRASHED, TIMEOUT, SKIPPED = (
    "begin", "ok", "failed", "unsupported", "crashed", "timeout", "skipped",
)  # fmt: skip
FILE = "results.jsonl"
LEFT_OUT = "section"  # stands for all cases of a section that is left out on this machine
Record = dict[str, Any]


class Records:
    """Appends to and reads `results.jsonl`. Several processes may append: one at a time, whole lines.

    Args:
        folder: where the file is.
        stage: kept in every record that is added; 0 outside of stages.
        tell: called with all records before and after one is added, while no other process adds one.
    """

    def __init__(
        self, folder: Path, stage: int = 0, tell: Callable[[list[Record], list[Record]], None] | None = None
    ) -> None:
        self.path = folder / FILE
        self._fields = {"stage": stage} if stage else {}
        self._tell = tell

    def add(self, section: str, case: str, status: str, **fields: Any) -> None:
        record = {"section": section, "case": case, "status": status, **self._fields, **fields}
        with self.alone() as file:
            file.cut_tail(lambda found: found.endswith(b"\n"))  # of a process that was killed within a write
            before = self.read() if self._tell is not None else []
            file.append((json.dumps(record, default=str) + "\n").encode())
            if self._tell is not None:
                self._tell(before, self.read())

    @contextlib.contextmanager
    def alone(self) -> Iterator[AppendFile]:
        """The file, to which nobody else adds meanwhile."""
        file = AppendFile(self.path, 0o644)
        try:
            fcntl.flock(file.descriptor, fcntl.LOCK_EX)  # until it is closed
            yield file
        finally:
            file.close()

    def read(self, section: str | None = None) -> list[Record]:
        """All records so far, of one section or of all, in order."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if section in (None, record["section"])]

    def open_case(self, section: str) -> str | None:
        """The case that has begun and has not ended."""
        last = {record["case"]: record["status"] for record in self.read(section)}
        return next((case for case, status in last.items() if status == BEGIN), None)


def last_of_each(records: list[Record]) -> list[Record]:
    """The last record of every case, in the order in which the cases began."""
    return list({(record["section"], record["case"]): record for record in records}.values())


def without_proof(records: list[Record]) -> list[Record]:
    """Cases that failed, that took their process or their time, or that were not reached.

    A section that makes no sense on this machine, or whose packages it lacks, is left out and no fault; nor is a case
    that says that it is unsupported.
    """
    return [r for r in last_of_each(records) if r["status"] not in (OK, UNSUPPORTED) and r["case"] != LEFT_OUT]


def first_line(error: BaseException, limit: int = 300) -> str:
    """An error for a table: its type and the first line that says something."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"[:limit]
