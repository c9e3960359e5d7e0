"""What is asked: requests made from a seed, or read from a file. The same seed gives the same requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxinfer.text import Tokenizer
from serving.bench.records import BenchRequest

NAMES = ("synthetic", "shared-prefix", "long-prompt", "chat-turns")
Form = Literal["tokens", "chat"]
Piece = tuple[int, ...] | str

_FIRST_ID = 3  # below it lie the special tokens of most vocabularies
_CONSONANTS, _VOWELS = "bdfgklmnprstvz", "aeiou"


class DatasetError(ValueError):
    """The requests cannot be made; names the option or the line of the file."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts and answers, and how far they vary: uniformly within +-range_ratio of themselves."""

    input_len: int = 1024
    output_len: int = 128
    range_ratio: float = 0.0
    prefix_len: int = 0  # tokens at the start of every prompt that all have in common

    def draw(self, length: int, rng: np.random.Generator) -> int:
        spread = length * self.range_ratio
        return max(1, int(rng.integers(round(length - spread), round(length + spread) + 1)))


@dataclass(frozen=True)
class Prefixes:
    """Of `shared-prefix`: each request is one of `count` prefixes and a suffix of its own."""

    prefix_len: int = 256
    suffix_len: int = 256
    count: int = 10
    output_len: int = 128


class PromptMaker:
    """Makes prompts of a length in tokens, as token ids or as a user's message.

    A message's length is exact where the model's tokenizer is at hand; without it a token is taken to be a word, so
    that the report's count of prompt tokens, which is the server's, comes out higher.
    """

    def __init__(self, form: Form, vocab_size: int, tokenizer: Tokenizer | None = None) -> None:
        if vocab_size <= _FIRST_ID:
            raise DatasetError(f"the vocabulary has {vocab_size} tokens; more than {_FIRST_ID} are needed")
        self._form, self._vocab_size, self._tokenizer = form, vocab_size, tokenizer

    def piece(self, length: int, rng: np.random.Generator) -> Piece:
        """A prompt, or a part of one, of `length` tokens."""
        if self._form == "tokens":
            return tuple(rng.integers(_FIRST_ID, self._vocab_size, length).tolist())
        return self.words(length, rng)

    def words(self, length: int, rng: np.random.Generator) -> str:
        text = " ".join(_word(rng) for _ in range(length))
        if self._tokenizer is None:
            return text
        return self._tokenizer.decode(self._tokenizer.encode(text, add_special_tokens=False)[:length])

    def request(self, parts: Sequence[Piece], output_len: int, kind: str = "") -> BenchRequest:
        """A request whose prompt is `parts`, one behind the other."""
        if self._form == "tokens":
            ids = tuple(token for part in parts for token in part if isinstance(token, int))
            return BenchRequest(output_len, token_ids=ids, kind=kind)
        content = " ".join(str(part) for part in parts if part)
        return BenchRequest(output_len, messages=({"role": "user", "content": content},), kind=kind)


def _word(rng: np.random.Generator) -> str:
    return "".join(_CONSONANTS[i % len(_CONSONANTS)] + _VOWELS[i % len(_VOWELS)] for i in rng.integers(0, 70, 2))


def synthetic(count: int, lengths: Lengths, make: PromptMaker, rng: np.random.Generator) -> list[BenchRequest]:
    """Prompts of random tokens; the first `prefix_len` of them are the same in all."""
    shared = make.piece(lengths.prefix_len, rng)
    return [
        make.request(
            (shared, make.piece(lengths.draw(lengths.input_len, rng), rng)), lengths.draw(lengths.output_len, rng)
        )
        for _ in range(count)
    ]


def shared_prefix(count: int, sizes: Prefixes, make: PromptMaker, rng: np.random.Generator) -> list[BenchRequest]:
    """As many requests of each prefix as of any other, give or take one, in random order.

    The kind of the first request of a prefix is `first`, that of the others `shared`: they find it cached.
    """
    prefixes = [make.piece(sizes.prefix_len, rng) for _ in range(sizes.count)]
    order = rng.permutation(np.arange(count) % sizes.count)
    seen: set[int] = set()
    requests = []
    for which in order.tolist():
        kind = "shared" if which in seen else "first"
        seen.add(which)
        requests.append(make.request((prefixes[which], make.piece(sizes.suffix_len, rng)), sizes.output_len, kind))
    return requests


def long_prompt(
    count: int, lengths: Lengths, long_len: int, share: float, make: PromptMaker, rng: np.random.Generator
) -> list[BenchRequest]:
    """Short prompts among which a `share`, at least one, has `long_len` tokens; they are spread evenly.

    Kinds are `short` and `long`: what the others see while a long prompt is computed is what `short` measures.
    """
    number = min(count, max(1, round(count * share)))
    long_ones = {int((i + 0.5) * count / number) for i in range(number)}
    requests = []
    for i in range(count):
        length = long_len if i in long_ones else lengths.draw(lengths.input_len, rng)
        kind = "long" if i in long_ones else "short"
        requests.append(make.request((make.piece(length, rng),), lengths.draw(lengths.output_len, rng), kind))
    return requests


def chat_turns(
    count: int, lengths: Lengths, turns: int, make: PromptMaker, rng: np.random.Generator
) -> list[BenchRequest]:
    """Conversations of `turns` user messages. Each next one is asked with the whole conversation before it."""
    requests = []
    for _ in range(count):
        said = [make.words(lengths.draw(lengths.input_len, rng), rng) for _ in range(turns)]
        first = ({"role": "user", "content": said[0]},)
        requests.append(BenchRequest(lengths.output_len, messages=first, kind="turn 1", turns=tuple(said[1:])))
    return requests


def from_file(path: Path, count: int, output_len: int, rng: np.random.Generator, *, chat: bool) -> list[BenchRequest]:
    """`count` requests of a file with one JSON object a line, in random order, again from the start where it is short.

    A line has `prompt`, a text or a list of token ids, or `messages`; `output_tokens` overrules `output_len`. chat:
    whether a text is a user's message. Raises DatasetError, naming the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"--dataset is {str(path)!r}; it cannot be read: {error}") from error
    found = [_from_line(f"{path}:{i}", line, output_len, chat) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise DatasetError(f"--dataset is {str(path)!r}; it must have a line with a prompt")
    order = rng.permutation(len(found)).tolist()
    return [found[order[i % len(found)]] for i in range(count)]


def _from_line(where: str, line: str, output_len: int, chat: bool) -> BenchRequest:
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where} is no JSON: {error}") from error
    if not isinstance(row, dict) or ("prompt" in row) == ("messages" in row):
        raise DatasetError(f"{where} must be an object with either prompt or messages")
    tokens = row.get("output_tokens", output_len)
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
        raise DatasetError(f"{where}: output_tokens is {tokens!r}; it must be a whole number of at least 1")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not messages or not all(_is_message(each) for each in messages):
            raise DatasetError(f"{where}: messages must be a list of objects with the texts role and content")
        return BenchRequest(tokens, messages=tuple(messages))
    prompt = row["prompt"]
    if isinstance(prompt, str):
        message = ({"role": "user", "content": prompt},)
        return BenchRequest(tokens, messages=message) if chat else BenchRequest(tokens, text=prompt)
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int and token >= 0 for token in prompt):
        raise DatasetError(f"{where}: prompt must be a text or a list of token ids")
    if chat:
        raise DatasetError(f"{where}: prompt is a list of token ids, which a chat endpoint does not take")
    return BenchRequest(tokens, token_ids=tuple(prompt))


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("role", "content"))
