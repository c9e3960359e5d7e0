"""The training data as rows of tokens: each row starts with a document and is filled with more of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np
import sentencepiece
from demo_corpus import Document, check_not_held_out, long_documents, short_documents

from demo_training.tokenizer import encode_document

_WORDS_PER_TOKEN = 0.61  # of the text in a row of long documents: leaves room for the questions
_MOST_MISFITS = 1000
Encoded = tuple[list[int], list[bool]]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of tokens, one longer than what the network sees: inputs and targets overlap.

    Attributes:
        ids: token ids (rows, length + 1), uint16.
        learned: (rows, length + 1), bool: whether the network is to predict this token.

    Raises:
        ValueError: the two differ in shape.
    """

    ids: np.ndarray
    learned: np.ndarray

    def __post_init__(self) -> None:
        if self.ids.shape != self.learned.shape or self.ids.ndim != 2:
            raise ValueError(f"learned has shape {self.learned.shape}: must be that of ids, {self.ids.shape}")

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows `start` to `start + count`, beginning again behind the last: ids int32 and learned bool."""
        places = np.arange(start, start + count) % len(self.ids)
        return self.ids[places].astype(np.int32), self.learned[places]


def _pack(firsts: Iterator[Encoded], fillers: Iterator[Encoded], rows: int, length: int) -> Rows:
    """Each row: one document of the first kind, then fillers; the last one is cut where the row ends."""
    ids = np.zeros((rows, length + 1), np.uint16)
    learned = np.zeros((rows, length + 1), np.bool_)
    for row in range(rows):
        used = 0
        for document, marks in itertools.chain([next(firsts)], fillers):
            taken = min(len(document), length + 1 - used)
            ids[row, used : used + taken] = document[:taken]
            learned[row, used : used + taken] = marks[:taken]
            used += taken
            if used > length:
                break
    return Rows(ids, learned)


def make_rows(
    tokenizer: sentencepiece.SentencePieceProcessor,
    held_out: frozenset[str],
    seed: int,
    rows: int,
    length: int,
    *,
    long: bool,
) -> Rows:
    """Rows from the corpus; with `long`, each starts with a long text that fits it.

    Raises:
        ValueError: the vocabulary does not fit uint16, the documents do not fit the rows, or one of them says what
            evaluation asks.
    """
    if tokenizer.vocab_size() > 2**16:
        raise ValueError(f"vocab_size {tokenizer.vocab_size()} is too large for the token ids: at most {2**16}")

    def encoded(documents: Iterator[Document]) -> Iterator[Encoded]:
        misfits = 0
        for document in check_not_held_out(documents, held_out):
            pair = encode_document(tokenizer, document)
            misfits = misfits + 1 if len(pair[0]) > length + 1 else 0
            if misfits == 0:
                yield pair
            elif misfits == _MOST_MISFITS:
                raise ValueError(f"rows of {length} tokens are too short for the documents")

    short = encoded(short_documents(seed))
    firsts = encoded(long_documents(seed, int(length * _WORDS_PER_TOKEN))) if long else short
    return _pack(firsts, short, rows, length)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Rows of short documents, and longer rows that start with a long one."""

    short: Rows
    long: Rows


def make_corpus(
    tokenizer: sentencepiece.SentencePieceProcessor,
    held_out: frozenset[str],
    *,
    seed: int,
    tokens: int,
    short: int,
    long: int,
) -> Corpus:
    """About `tokens` tokens, two thirds in rows of `short`, one third in rows of `long`. Raises what make_rows does."""
    return Corpus(
        make_rows(tokenizer, held_out, seed, max(1, tokens * 2 // 3 // short), short, long=False),
        make_rows(tokenizer, held_out, seed + 1, max(1, tokens // 3 // long), long, long=True),
    )
