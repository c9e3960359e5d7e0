"""The calibration file: texts like those that the model will see, as token ids.

A file named *.jsonl has an object on each line, with "text" (a string) or "messages" (a conversation, rendered with the
model's chat template). In any other file each line that is not blank is a text. Only the first `MAX_SAMPLES` samples
are used, and of each the first `MAX_TOKENS` tokens, so that time and memory are bounded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoints.files import CheckpointError
from jaxinfer.config import ModelConfig
from jaxinfer.text import Tokenizer, load_tokenizer
from jaxinfer.text.errors import ChatTemplateError, TextError, TokenizerError

MAX_SAMPLES = 128
MAX_TOKENS = 512
MIN_TOKENS = 64  # in all: statistics of fewer say nothing


@dataclass(frozen=True)
class Samples:
    """ids: of each sample that is used. offered: samples in the file. cut: how many were longer than is used."""

    ids: tuple[tuple[int, ...], ...]
    offered: int
    cut: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.ids))


def read_samples(path: Path, folder: Path, config: ModelConfig) -> Samples:
    """The samples of `path`, tokenized as the model in `folder` does.

    Raises CheckpointError naming file and line for what cannot be read, or if there are fewer than `MIN_TOKENS` tokens.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: expected text in UTF-8; found a fault: {error}") from error
    filled = [(f"{path}:{number}", line) for number, line in enumerate(lines, start=1) if line.strip()]
    tokenizer = load_tokenizer(folder)
    encode = _from_json if path.suffix == ".jsonl" else _from_text
    longest = min(MAX_TOKENS, config.max_position_embeddings)
    encoded = []
    for where, line in filled[:MAX_SAMPLES]:
        try:
            encoded.append(encode(where, line, tokenizer))
        except (ChatTemplateError, TextError, TokenizerError) as error:
            raise CheckpointError(f"{where}: cannot be tokenized: {error}") from error
    samples = Samples(
        ids=tuple(tuple(ids[:longest]) for ids in encoded if ids),
        offered=len(filled),
        cut=sum(len(ids) > longest for ids in encoded),
    )
    largest = max((max(ids) for ids in samples.ids), default=0)
    if largest >= config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer gives id {largest}; expected ids below vocab_size {config.vocab_size}"
        )
    if samples.tokens < MIN_TOKENS:
        raise CheckpointError(
            f"{path}: expected at least {MIN_TOKENS} tokens to calibrate with; found {samples.tokens} "
            f"in {len(samples.ids)} samples"
        )
    return samples


def _from_text(where: str, line: str, tokenizer: Tokenizer) -> list[int]:
    del where
    return list(tokenizer.encode(line))


def _from_json(where: str, line: str, tokenizer: Tokenizer) -> list[int]:
    try:
        data: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: expected JSON; found a fault: {error}") from error
    if not isinstance(data, dict) or ("text" in data) == ("messages" in data):
        raise CheckpointError(f"{where}: expected an object with either text or messages; found {line[:80]!r}")
    if "text" in data:
        if not isinstance(data["text"], str):
            raise CheckpointError(f"{where}: text is {data['text']!r:.80}; expected a string")
        return list(tokenizer.encode(data["text"]))
    messages = data["messages"]
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages) or not messages:
        raise CheckpointError(f"{where}: messages is {messages!r:.80}; expected a list of objects")
    return list(tokenizer.encode_chat(messages, add_generation_prompt=False))
