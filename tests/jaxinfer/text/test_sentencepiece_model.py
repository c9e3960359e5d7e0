"""Reading tokenizer.model, against the sentencepiece library where it exposes the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece

from jaxinfer.text import TokenizerError
from jaxinfer.text.sentencepiece_model import BPE, CONTROL, UNIGRAM, USER_DEFINED, merges_by_id, read_model
from tests.jaxinfer.text.golden_cases import GOLDENS


@pytest.mark.parametrize(
    ("name", "kind", "byte_fallback", "charsmap"),
    [("sp_bpe", BPE, True, False), ("sp_unigram", UNIGRAM, True, False), ("sp_rules", UNIGRAM, False, True)],
)
def test_read_model(name: str, kind: int, byte_fallback: bool, charsmap: bool) -> None:
    path = GOLDENS / "vocabularies" / f"{name}.model"
    model = read_model(path, path.read_bytes())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    size = processor.GetPieceSize()
    assert [piece for piece, _ in model.pieces] == [processor.IdToPiece(index) for index in range(size)]
    assert [index for index, found in enumerate(model.types) if found == CONTROL] == [
        index for index in range(size) if processor.IsControl(index)
    ]
    assert model.types[processor.PieceToId("<|turn|>")] == USER_DEFINED
    assert (model.model_type, model.byte_fallback, bool(model.charsmap)) == (kind, byte_fallback, charsmap)
    assert (model.unk_id, model.bos_id, model.eos_id) == (processor.unk_id(), processor.bos_id(), processor.eos_id())
    assert (model.unk_piece, model.bos_piece, model.eos_piece) == ("<unk>", "<s>", "</s>")
    assert model.add_dummy_prefix


def test_merges_go_by_the_id_of_what_they_build() -> None:
    vocab = {"a": 0, "b": 1, "ab": 3, "aba": 2, "ba": 4, "abab": 5}
    assert merges_by_id(vocab) == [("a", "ba"), ("ab", "a"), ("a", "b"), ("b", "a"), ("ab", "ab"), ("aba", "b")]


def test_a_word_model_is_refused_by_type(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words here", "a few more words"] * 20),
        model_prefix=str(tmp_path / "word"),
        model_type="word",
        vocab_size=8,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(TokenizerError, match="of type word; supported are unigram and bpe"):
        read_model(tmp_path / "word.model", (tmp_path / "word.model").read_bytes())
