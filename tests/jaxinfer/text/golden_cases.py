"""The recorded tokenizer folders of tests/goldens_text, written out again for a test to load."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

from jaxinfer.text import Tokenizer, load_tokenizer

GOLDENS = Path(__file__).resolve().parents[2] / "goldens_text"


@functools.cache
def read(name: str) -> Any:
    """A JSON file of the goldens."""
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def cases() -> list[dict[str, Any]]:
    """All recorded folders with transformers' results."""
    return read("cases.json")["cases"]


def case(name: str) -> dict[str, Any]:
    return next(entry for entry in cases() if entry["name"] == name)


def write_folder(folder: Path, entry: dict[str, Any], **files: Any) -> Path:
    """Writes the files of a case; `files` are added or replace them (None removes one)."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = GOLDENS / "vocabularies" / entry["vocabulary"]
    (folder / f"tokenizer{vocabulary.suffix}").write_bytes(vocabulary.read_bytes())
    for name, content in {**entry["files"], **files}.items():
        if content is None:
            continue
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_bytes(text.encode())
    return folder


@functools.cache
def tokenizer(name: str) -> Tokenizer:
    """The loaded tokenizer of a case; shared, as tokenizers do not change."""
    with tempfile.TemporaryDirectory() as folder:
        return load_tokenizer(write_folder(Path(folder), case(name)))
