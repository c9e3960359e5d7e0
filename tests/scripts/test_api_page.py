"""docs/api.md is what the server says of itself, and docs/http.md has the sampling parameters as they are declared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jaxinfer.sampling_params import FIELDS
from scripts.generate_api_page import BEGIN, END, guide
from serving.http.openapi import document

ROOT = Path(__file__).parents[2]


def test_the_pages_are_up_to_date() -> None:
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


def test_the_table_of_sampling_parameters_is_written_between_its_lines() -> None:
    text = guide(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    assert text.startswith(f"before\n\n{BEGIN}\n\n| sampling parameter |")
    assert text.endswith(f" |\n\n{END}\n\nafter\n")
    assert "old" not in text
    assert [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")] == list(FIELDS)
    row = "| `top_k` | all | Draw from that many of the likeliest tokens; 0 or -1 means off | "
    assert f"{row}a positive integer, or 0 or -1 for off | the model's, else off |\n" in text
    assert guide(text) == text


@pytest.mark.parametrize(("text", "line"), [(f"x\n{END}\n", BEGIN), (f"x\n{BEGIN}\n", END)])
def test_a_guide_without_the_lines_is_refused(text: str, line: str) -> None:
    with pytest.raises(ValueError, match=f"lacks a line: {line}"):
        guide(text)
