"""tekken.json, Mistral's own tokenizer file, as a tokenizer of the tokenizers library.

The file (https://github.com/mistralai/mistral-common) lists byte strings by rank. A pattern cuts a text into words; of
all neighbours in a word whose bytes together are a token, those of the lowest rank are joined first, until there are
none. Ids of special tokens come first, those of the ranks behind them.

It is read directly, and not through mistral-common: incremental detokenization, stop strings, bounds of lengths and
chat templates work with the tokenizers library, and in it the same ids come out.
"""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from jaxinfer.text.decoding import BYTE_OF
from jaxinfer.text.errors import TokenizerError

# Special tokens of files that do not list them, which those of version v7 and before need not.
_UNLISTED = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
    "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
_UNLISTED_VERSIONS = ("v1", "v2", "v3", "v7")
_CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


@dataclass(frozen=True)
class Tekken:
    """A checked file. specials: by id, from 0. ranks: {bytes of a token: its rank}, from 0, without holes."""

    pattern: str
    specials: tuple[str, ...]
    ranks: dict[bytes, int]

    def backend(self) -> Tokenizer:
        """The tokenizer, its special tokens added, without a post-processor."""
        vocab = {_written(token): rank + len(self.specials) for token, rank in self.ranks.items()}
        vocab |= {token: index for index, token in enumerate(self.specials)}
        backend = Tokenizer(BPE(vocab=vocab, merges=self._merges(), fuse_unk=False, ignore_merges=True))
        backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(self.pattern), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        backend.decoder = decoders.ByteLevel()
        backend.add_special_tokens(list(self.specials))
        return backend

    def _merges(self) -> list[tuple[str, str]]:
        """Every way to make a token of two others, by its rank, then by theirs."""
        ranks, merges = self.ranks, []
        for token in sorted(ranks, key=lambda token: ranks[token]):
            halves = [(token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks]
            halves.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
            merges += [(_written(left), _written(right)) for left, right in halves]
        return merges


def read(path: Path, document: dict[str, Any]) -> Tekken:
    """Checks the parsed file. Raises TokenizerError naming file, key and value."""
    config = document.get("config")
    if not isinstance(config, dict) or not isinstance(pattern := config.get("pattern"), str):
        raise TokenizerError(f"{path}: config must be an object with a pattern, got {config!r:.200}")
    specials = _specials(path, document, config)
    listed = document.get("vocab")
    if not isinstance(listed, list):
        raise TokenizerError(f"{path}: vocab must be a list of tokens, not {type(listed).__name__}")
    size = _count(path, config, "default_vocab_size", len(listed) + len(specials))
    kept = size - len(specials)
    if not 256 <= kept <= len(listed):
        raise TokenizerError(
            f"{path}: config.default_vocab_size is {size}; with {len(specials)} special tokens and {len(listed)} "
            f"others it must be from {256 + len(specials)} to {len(listed) + len(specials)}"
        )
    ranks: dict[bytes, int] = {}
    for rank, entry in enumerate(listed[:kept]):
        token = _token(path, rank, entry)
        if token in ranks:
            raise TokenizerError(f"{path}: vocab[{rank}] has the bytes of vocab[{ranks[token]}]: {token!r:.80}")
        ranks[token] = rank
    if clashes := [token for token in specials if token.encode() in ranks]:
        raise TokenizerError(f"{path}: special tokens {clashes} are tokens of the vocabulary, too")
    return Tekken(pattern, specials, ranks)


def _token(path: Path, rank: int, entry: Any) -> bytes:
    where = f"{path}: vocab[{rank}]"
    if not isinstance(entry, dict) or entry.get("rank") != rank or not isinstance(entry.get("token_bytes"), str):
        raise TokenizerError(f"{where} must be an object with rank {rank} and token_bytes, got {entry!r:.200}")
    try:
        token = base64.b64decode(entry["token_bytes"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise TokenizerError(f"{where}.token_bytes must be base64, got {entry['token_bytes']!r:.80}") from error
    if not token or (rank < 256 and token != bytes((rank,))):
        raise TokenizerError(f"{where}.token_bytes is {token!r:.80}; the first 256 tokens must be the bytes in order")
    return token


def _specials(path: Path, document: dict[str, Any], config: dict[str, Any]) -> tuple[str, ...]:
    """Spellings by id; ids without one are filled up as mistral-common does."""
    listed, version = document.get("special_tokens"), config.get("version")
    if listed is None:
        if version not in _UNLISTED_VERSIONS:
            raise TokenizerError(f"{path} has no special_tokens, which version {version!r} must list")
        names = list(_UNLISTED)
    else:
        if not isinstance(listed, list) or not all(isinstance(entry, dict) for entry in listed):
            raise TokenizerError(f"{path}: special_tokens must be a list of objects")
        by_rank = {entry.get("rank"): entry.get("token_str") for entry in listed}
        names = [name for rank in range(len(listed)) if isinstance(name := by_rank.get(rank), str) and name]
        if len(names) != len(listed) or len(set(names)) != len(names):
            raise TokenizerError(
                f"{path}: special_tokens must have different token_str, and ranks from 0 without holes"
            )
    count = _count(path, config, "default_num_special_tokens", len(names))
    if count < len(names):
        raise TokenizerError(
            f"{path}: config.default_num_special_tokens is {count}; there are {len(names)} special tokens"
        )
    return (*names, *(f"<SPECIAL_{index}>" for index in range(len(names), count)))


def _count(path: Path, config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TokenizerError(f"{path}: config.{key} must be a number of tokens, got {value!r:.80}")
    return value


def _written(token: bytes) -> str:
    """Bytes in the byte-level alphabet of the tokenizers library."""
    return "".join(_CHARACTER_OF[byte] for byte in token)
