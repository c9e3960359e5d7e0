"""Reads a sentencepiece `tokenizer.model` file into plain Python.

The sentencepiece library loads the file, which checks it, and gives the pieces and scores. A few settings that its
Python interface does not expose (piece types, model type, character map) are read from the protobuf wire format
directly: the message classes that the library ships are tied to one generation of the protobuf runtime, and refuse to
import beside an older one. Field numbers are those of sentencepiece's public sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from jaxinfer.text.errors import TokenizerError

UNIGRAM = 1
BPE = 2
_MODEL_TYPES = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}

# ModelProto
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
# ModelProto.SentencePiece
_PIECE_TYPE = 3
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
# TrainerSpec
_MODEL_TYPE, _BYTE_FALLBACK = 3, 35
_UNK_ID, _BOS_ID, _EOS_ID = 40, 41, 42
_UNK_PIECE, _BOS_PIECE, _EOS_PIECE = 45, 46, 47
# NormalizerSpec
_CHARSMAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_WHITESPACES, _ESCAPE_WHITESPACES = 2, 3, 4, 5


@dataclass(frozen=True)
class SentencePieceModel:
    """What tokenization needs from the file.

    Attributes:
        pieces: (piece, score) in id order.
        types: per piece, the type number of sentencepiece_model.proto (1 normal, 3 control, 4 user defined).
        model_type: UNIGRAM or BPE.
        byte_fallback: whether characters outside the vocabulary become <0x00>..<0xFF> pieces.
        unk_id, bos_id, eos_id: -1 when the model has none.
        unk_piece, bos_piece, eos_piece: their spellings.
        charsmap: compiled normalisation table, b"" for none.
        add_dummy_prefix: whether sentencepiece puts a space before the text.
        remove_extra_whitespaces: whether it drops spaces at both ends and makes one of several in a row.
        escape_whitespaces: whether it writes a space as ▁.
    """

    pieces: list[tuple[str, float]]
    types: list[int]
    model_type: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    unk_piece: str
    bos_piece: str
    eos_piece: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool

    def ids_of_type(self, kind: int) -> list[int]:
        """The ids of the pieces of one type."""
        return [index for index, found in enumerate(self.types) if found == kind]


def read_model(path: Path, data: bytes) -> SentencePieceModel:
    """Parses the bytes of a tokenizer.model; `path` is for messages only.

    Raises:
        TokenizerError: not a sentencepiece model, or one of a type other than unigram and bpe.
    """
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(data)
        size = processor.GetPieceSize()
        pieces = [(processor.IdToPiece(i), processor.GetScore(i)) for i in range(size)]
        top = [(number, value) for number, value in _fields(data) if isinstance(value, bytes)]
        types = [_int(dict(_fields(value)), _PIECE_TYPE, NORMAL) for number, value in top if number == _PIECES]
        trainer = dict(_fields(b"".join(value for number, value in top if number == _TRAINER_SPEC)))
        normalizer = dict(_fields(b"".join(value for number, value in top if number == _NORMALIZER_SPEC)))
    except (RuntimeError, ValueError, IndexError, struct.error) as error:
        raise TokenizerError(f"{path} is not a sentencepiece model: {error}") from error
    if not pieces or len(types) != len(pieces):
        raise TokenizerError(f"{path} is not a sentencepiece model: it holds no pieces")
    model_type = _int(trainer, _MODEL_TYPE, UNIGRAM)
    if model_type not in (UNIGRAM, BPE):
        kind = _MODEL_TYPES.get(model_type, str(model_type))
        raise TokenizerError(f"{path} is a sentencepiece model of type {kind}; supported are unigram and bpe")
    return SentencePieceModel(
        pieces=pieces,
        types=types,
        model_type=model_type,
        byte_fallback=bool(_int(trainer, _BYTE_FALLBACK, 0)),
        unk_id=_int(trainer, _UNK_ID, 0),
        bos_id=_int(trainer, _BOS_ID, 1),
        eos_id=_int(trainer, _EOS_ID, 2),
        unk_piece=_str(trainer, _UNK_PIECE, "<unk>"),
        bos_piece=_str(trainer, _BOS_PIECE, "<s>"),
        eos_piece=_str(trainer, _EOS_PIECE, "</s>"),
        charsmap=_bytes(normalizer, _CHARSMAP),
        add_dummy_prefix=bool(_int(normalizer, _ADD_DUMMY_PREFIX, 1)),
        remove_extra_whitespaces=bool(_int(normalizer, _REMOVE_EXTRA_WHITESPACES, 1)),
        escape_whitespaces=bool(_int(normalizer, _ESCAPE_WHITESPACES, 1)),
    )


def merges_by_id(vocab: dict[str, int]) -> list[tuple[str, str]]:
    """BPE merge rules of a vocabulary whose ids are its merge order, as sentencepiece's BPE trainer numbers them.

    Every way to cut a piece into two pieces is a rule; rules go by the id of what they build, then by the length of
    the left part. transformers derives them so for classes that read any tokenizer.model as BPE (`LlamaTokenizer`).
    """
    rules = [
        (index, cut, piece)
        for piece, index in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    rules.sort(key=lambda rule: rule[:2])
    return [(piece[:cut], piece[cut:]) for _, cut, piece in rules]


def merges_by_score(model: SentencePieceModel, spelling: Mapping[int, str]) -> list[tuple[str, str]]:
    """BPE merge rules as sentencepiece applies them: the best scored piece first, of equals the one with the lower id.

    Only normal pieces are merged, and only into normal ones. Two ways to the same piece go by the spelling of the left
    part. spelling: id -> the piece's name in the vocabulary, which may not be the file's.
    """
    ids = {spelling[index]: index for index in model.ids_of_type(NORMAL)}
    rules = [
        (-model.pieces[index][1], index, piece[:cut], piece[cut:])
        for piece, index in ids.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    return [(left, right) for _, _, left, right in sorted(rules)]


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a protobuf message: int for varints and fixed widths, bytes for what has a length."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, position = _varint(data, position)
        elif wire == 2:
            length, position = _varint(data, position)
            value, position = data[position : position + length], position + length
        elif wire in (1, 5):
            width = 8 if wire == 1 else 4
            value, position = data[position : position + width], position + width
        else:
            raise ValueError(f"unknown wire type {wire}")
        if position > len(data):
            raise ValueError("truncated message")
        yield number, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            # int32 fields such as ids are sign-extended to 64 bits.
            return (value - (1 << 64) if value >= 1 << 63 else value), position
        shift += 7


def _int(fields: dict[int, int | bytes], number: int, default: int) -> int:
    value = fields.get(number, default)
    if not isinstance(value, int):
        raise ValueError(f"field {number} is not an integer")
    return value


def _bytes(fields: dict[int, int | bytes], number: int) -> bytes:
    value = fields.get(number, b"")
    return value if isinstance(value, bytes) else b""


def _str(fields: dict[int, int | bytes], number: int, default: str) -> str:
    value = fields.get(number)
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else default
