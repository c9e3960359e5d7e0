"""Tokens of a text that stands within another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import normalizers, pre_tokenizers


def encoder_within(backend: Backend) -> Callable[[str], list[int]]:
    """Encodes text as if other text stood before it: no space is put in front, no token is added at either end, and
    special tokens that it spells are plain text.

    The backend is left as it is: the encoder has a copy. Texts that the vocabulary cannot express come back changed, as
    the backend changes them.
    """
    inner = Backend.from_str(backend.to_str())
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True
    if inner.normalizer is not None:
        inner.normalizer = _changed(normalizers.Sequence([]), inner.normalizer, _without_prepend)
    if inner.pre_tokenizer is not None:
        inner.pre_tokenizer = _changed(pre_tokenizers.Sequence([]), inner.pre_tokenizer, _without_prefix)

    def encode(text: str) -> list[int]:
        ids: list[int] = inner.encode(text, add_special_tokens=False).ids
        return ids

    return encode


def _changed(empty: Any, component: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """A component like the given one with its description changed; `empty` becomes it. Components of the library have
    no other way to be made of a description than the one that pickle uses."""
    described = json.loads(component.__getstate__())
    empty.__setstate__(json.dumps(change(described)).encode())
    return empty


def _without_prepend(normalizer: dict[str, Any]) -> dict[str, Any]:
    if normalizer["type"] == "Prepend":
        return {"type": "Sequence", "normalizers": []}
    if normalizer["type"] == "Sequence":
        return {**normalizer, "normalizers": [_without_prepend(inner) for inner in normalizer["normalizers"]]}
    return normalizer


def _without_prefix(pre_tokenizer: dict[str, Any]) -> dict[str, Any]:
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return {**pre_tokenizer, "pretokenizers": [_without_prefix(inner) for inner in pre_tokenizer["pretokenizers"]]}
    if kind == "Metaspace":
        return {**pre_tokenizer, "prepend_scheme": "never"}
    if kind == "ByteLevel":
        return {**pre_tokenizer, "add_prefix_space": False}
    return pre_tokenizer
