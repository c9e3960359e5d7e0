"""docs/api.md is what the server says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving.http.openapi import document

ROOT = Path(__file__).parents[2]


def test_the_page_is_as_the_schema_says() -> None:
    command = [sys.executable, "scripts/generate_api_page.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_field_has_a_line() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    for path, methods in document()["paths"].items():
        for method in methods:
            assert f"## {method.upper()} {path}\n" in page
    for name, schema in document()["components"]["schemas"].items():
        if name.endswith("Request"):
            for field in schema["properties"]:
                assert f"| `{field}`" in page, (name, field)
