"""Every file that was handed over is read by a test, and README.md says by which."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

HERE = Path(__file__).parent
FILES = sorted(path.name for path in (HERE / "reports").iterdir())
ROWS = [row for row in (HERE / "README.md").read_text(encoding="utf-8").splitlines() if row.startswith("| `")]


def test_every_file_is_read_by_a_test() -> None:
    assert FILES
    tests = [path.read_text(encoding="utf-8") for path in HERE.parent.rglob("test_*.py")]
    assert [name for name in FILES if not any(f'"{name}"' in text for text in tests)] == []


def test_the_table_has_every_file_and_its_test() -> None:
    listed: list[str] = []
    for file, _, test in (re.split(r" ?\| ?", row)[1:4] for row in ROWS):
        listed += re.findall(r"`([^`]+)`", file)
        if test != "the same":
            name, _, function = test.strip("`").partition("::")
            assert (
                f"def {function}(" in (HERE / name).read_text(encoding="utf-8") if function else (HERE / name).exists()
            )
    assert [name for name in FILES if not any(fnmatch(name, pattern) for pattern in listed)] == []
    assert [pattern for pattern in listed if not any(fnmatch(name, pattern) for name in FILES)] == []
