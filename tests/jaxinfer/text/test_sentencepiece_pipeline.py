"""A tokenizer.model without rules of a class, against the sentencepiece library that owns the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import sentencepiece

from jaxinfer.text import load_tokenizer
from jaxinfer.text.sentencepiece_model import NORMAL, USER_DEFINED, merges_by_id, merges_by_score, read_model
from tests.jaxinfer.text.golden_cases import GOLDENS, read, tokenizer

VOCABULARIES = GOLDENS / "vocabularies"
MODELS = {
    "generic_model_bpe": "sp_bpe",
    "generic_model_unigram": "sp_unigram",
    "generic_model_rules": "sp_rules",
    "generic_model_scores": "sp_scores",
}
# Spellings of control, unknown and byte pieces: plain characters for sentencepiece, tokens for transformers.
SPELLINGS = ("<s>", "</s>", "<unk>", "<0x", "\0")
TEXTS = [text for text in read("inputs.json")["texts"] if not any(mark in text for mark in SPELLINGS)]


@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_sentencepiece(name: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARIES / f"{MODELS[name]}.model"))
    assert len(TEXTS) > 35
    for text in TEXTS:
        assert tokenizer(name).encode(text, add_special_tokens=False) == processor.encode(text), text


def test_a_space_comes_before_each_stretch_of_text() -> None:
    """model_type mistral with the class LlamaTokenizer: what transformers 5.24.0 and sentencepiece give."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(VOCABULARIES / "sp_bpe.model"))
    loaded = tokenizer("generic_model_bpe")
    bos, eos = processor.bos_id(), processor.eos_id()

    def whole(*parts: str | int) -> list[int]:
        return [index for part in parts for index in ([part] if isinstance(part, int) else processor.encode(part))]

    assert loaded.encode("Hello world") == whole(bos, "Hello world")
    assert loaded.encode(" Hello") == whole(bos, " Hello")
    assert loaded.encode("Hello</s>world") == whole(bos, "Hello", eos, "world")
    assert processor.encode(" Hello") != processor.encode("Hello"), "the model does not tell the two apart"
    assert loaded.decode(loaded.encode(" Hello")) == " Hello"


def test_merges_go_by_score_then_id_of_normal_pieces() -> None:
    path = VOCABULARIES / "sp_scores.model"
    model = read_model(path, path.read_bytes())
    spelling = {index: piece for index, (piece, _) in enumerate(model.pieces)}
    ids = {piece: index for index, piece in spelling.items()}
    ranks = [
        (-model.pieces[ids[left + right]][1], ids[left + right]) for left, right in merges_by_score(model, spelling)
    ]
    assert ranks == sorted(ranks)
    assert ranks != sorted(ranks, key=lambda rank: rank[1]), "scores and ids have one order: the test proves nothing"
    assert len({score for score, _ in ranks}) < len({index for _, index in ranks}), "no two pieces share a score"
    parts = {part for rule in merges_by_score(model, spelling) for part in rule}
    assert {model.types[ids[part]] for part in parts} == {NORMAL}
    assert len(merges_by_score(model, spelling)) <= len(merges_by_id(ids))


def test_user_defined_pieces_stay_whole() -> None:
    path = VOCABULARIES / "sp_bpe.model"
    model = read_model(path, path.read_bytes())
    (turn,) = model.ids_of_type(USER_DEFINED)
    loaded = tokenizer("generic_model_bpe")
    assert loaded.encode("a<|turn|>b<|turn|><|turn|>").count(turn) == 3
    assert not loaded.is_special(turn)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("generic_model_bpe", ("no space before the text",)),
        ("generic_model_scores", ("kept extra spaces", "by id, not by score")),
        ("generic_model_rules", ("no space before the text", "kept extra spaces")),
    ],
)
def test_a_note_says_where_releases_differ(name: str, words: tuple[str, ...]) -> None:
    (note,) = [note for note in tokenizer(name).notes if "before 5.24" in note]
    assert all(word in note for word in words)


def test_a_model_that_all_releases_read_alike_has_no_note(tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a few words here", "a few more words"] * 20),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=40,
        hard_vocab_limit=False,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "olmo2"}))
    assert load_tokenizer(tmp_path).notes == ()


def test_every_difference_between_the_two_newest_releases_has_its_note() -> None:
    """releases.json is made by scripts/compare_text_releases.py."""
    releases = read("releases.json")
    before = releases["differences"]["5.23.0"]
    differing = {name for name, found in before.items() if found.get("ids")}
    assert differing
    for name in differing:
        assert any("before 5.24" in note for note in tokenizer(name).notes), name
    assert "generic_model_bpe" in differing


def test_the_documented_table_is_the_recorded_one() -> None:
    recorded = read("releases.json")
    page = (Path(__file__).resolve().parents[3] / "docs" / "tokenizers.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    documented = {row[0].strip("`"): row[1:] for row in rows if len(row) == 1 + len(recorded["differences"])}
    for place, (version, folders) in enumerate(recorded["differences"].items()):
        assert version in page
        for name, cells in documented.items():
            entry = folders.get(name)
            wanted = (
                f"{entry['ids']} of {entry['of']}" if entry and "ids" in entry else "not read" if entry else "as newest"
            )
            assert cells[place] == wanted, (name, version)
        assert folders.keys() <= documented.keys()
    assert recorded["newest"] == read("cases.json")["versions"]["transformers"]
    assert f"**transformers {recorded['newest']}**" in page
