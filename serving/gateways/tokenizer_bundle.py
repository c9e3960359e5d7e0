"""A model's tokenizer as one zip archive, for gateways that tokenize themselves."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import NamedTuple

# What tokenizers and chat templates are read from, and the two files that name special tokens and sampling defaults.
_NAMES = (
    "tokenizer.json",
    "tekken.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "config.json",
    "generation_config.json",
)
_PATTERNS = ("*.model", "*.tiktoken", "*.jinja")
# The oldest that zip knows: equal files make an equal archive, whenever they were copied.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Bundle(NamedTuple):
    """data: the archive. sha256: of it, hexadecimal."""

    data: bytes
    sha256: str


def bundle(folder: Path) -> Bundle:
    """The tokenizer's files of `folder`, without folders inside. Raises FileNotFoundError when it holds none."""
    found = {folder / name for name in _NAMES} | {path for pattern in _PATTERNS for path in folder.glob(pattern)}
    paths = sorted(path for path in found if path.is_file())
    if not paths:
        raise FileNotFoundError(f"{folder} holds no file of a tokenizer")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.writestr(zipfile.ZipInfo(path.name, _EPOCH), path.read_bytes(), zipfile.ZIP_DEFLATED)
    data = buffer.getvalue()
    return Bundle(data, hashlib.sha256(data).hexdigest())
