"""scripts/clients: what clients.txt names is there, and documents say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES = [
    line.split()
    for line in (ROOT / "scripts" / "clients" / "clients.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[0])
def test_a_client_has_cases_and_a_row_with_its_version(line: list[str]) -> None:
    _name, kind, packages, program = line
    assert kind in ("python", "node")
    assert (ROOT / "scripts" / "clients" / program).is_file()
    version = re.split(r"==|(?<=.)@(?=\d)", packages.split(",")[0])[-1]
    assert version in (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")


def test_every_program_is_some_clients() -> None:
    programs = {path.name for path in (ROOT / "scripts" / "clients").glob("*.*") if path.suffix in (".py", ".mjs")}
    assert programs - {"cases.py", "cases.mjs", "servers.py"} == {program for *_, program in LINES}
