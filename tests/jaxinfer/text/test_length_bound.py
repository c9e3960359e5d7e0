"""How many characters tokens can stand for: never fewer than they do, whatever the pipeline makes vanish."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import Regex as Pattern

from jaxinfer.text import PromptTooLong
from jaxinfer.text.length_bound import LengthBound
from tests.jaxinfer.text.golden_cases import tokenizer
from tests.jaxinfer.text.test_detokenize import KINDS

LETTERS = "ab \u0301\u0316\u0345é"


def byte_level(**parts: Any) -> Tokenizer:
    """Bytes and three merges; parts: what stands beside the model."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: index for index, piece in enumerate([*alphabet, "aa", "aaaa", "Ġa"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "a"), ("aa", "aa"), ("Ġ", "a")]))
    steps = parts.pop("pre_tokenizers", [])
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    return backend


def metaspace(model: Any) -> Tokenizer:
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    return backend


def bpe(pieces: list[str], **settings: Any) -> Tokenizer:
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return metaspace(models.BPE(vocab=vocab, merges=[], **settings))


BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
BOUNDED = {
    "plain": byte_level(),
    "NFC": byte_level(normalizer=normalizers.NFC()),
    "NFKC": byte_level(normalizer=normalizers.NFKC()),
    "NFD": byte_level(normalizer=normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase()])),
    "replaced by less": byte_level(normalizer=normalizers.Replace("aab", "b")),
    "stripped": byte_level(normalizer=normalizers.Strip()),
    "split at spaces": byte_level(pre_tokenizers=[pre_tokenizers.WhitespaceSplit()]),
    "split, kept": byte_level(pre_tokenizers=[pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.Digits()]),
    "bytes for the unknown": bpe([*BYTES, "▁", "a"], fuse_unk=True, byte_fallback=True),
    "an unknown token each": bpe(["?", "▁", "a"], unk_token="?"),
}
UNBOUNDED = {
    "removed by a pattern": byte_level(normalizer=normalizers.Replace(Pattern("b+"), "")),
    "replaced by a pattern": byte_level(normalizer=normalizers.Replace(Pattern(" {2,}"), " ")),
    "replaced by nothing": byte_level(normalizer=normalizers.Replace("b", "")),
    "replaced by a space": byte_level(
        normalizer=normalizers.Sequence([normalizers.Replace("b", " "), normalizers.Strip()])
    ),
    "accents stripped": byte_level(normalizer=normalizers.StripAccents()),
    "split and removed": byte_level(pre_tokenizers=[pre_tokenizers.Split("b", "removed")]),
    "one unknown token for many": bpe(["?", "▁", "a"], unk_token="?", fuse_unk=True),
    "the unknown vanishes": bpe(["▁", "a"]),
    "a byte is missing": bpe([*BYTES[:-1], "▁", "a"], fuse_unk=True, byte_fallback=True),
    "words": Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")),
    "pieces": metaspace(models.Unigram([("?", 0.0), ("▁", -1.0), ("a", -1.0)], 0, False)),
}


def tokens(backend: Tokenizer, text: str) -> int:
    return len(backend.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("name", BOUNDED)
@settings(max_examples=60)
@given(text=st.text(LETTERS, max_size=60) | st.text(max_size=30))
def test_what_fits_is_never_too_long(name: str, text: str) -> None:
    bound = LengthBound.of(BOUNDED[name])
    assert bound is not None
    assert not bound.exceeded(text, tokens(BOUNDED[name], text))


@pytest.mark.parametrize("name", BOUNDED)
def test_what_is_far_too_long_is_told(name: str) -> None:
    bound = LengthBound.of(BOUNDED[name])
    assert bound is not None
    assert bound.exceeded("b" * (bound.characters(9) + 1), 9)
    assert not bound.exceeded("b" * bound.characters(9), 9)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_of_a_pipeline_that_makes_text_vanish_nothing_is_said(name: str) -> None:
    assert LengthBound.of(UNBOUNDED[name]) is None


def test_that_is_no_caution_for_its_own_sake() -> None:
    """Of most of them a long text is one token or none."""
    for name, text in {
        "removed by a pattern": "b" * 500,
        "replaced by nothing": "b" * 500,
        "replaced by a space": "b" * 500,
        "accents stripped": "a" + "\u0301" * 500,
        "split and removed": "b" * 500,
        "one unknown token for many": "b" * 500,
        "the unknown vanishes": "b" * 500,
        "pieces": "b" * 500,
    }.items():
        assert tokens(UNBOUNDED[name], text) <= 2, name


def test_a_character_of_four() -> None:
    """The most that composing makes one of."""
    text = "\u03b1\u0313\u0300\u0345" * 50  # Greek alpha with psili, varia and ypogegrammeni
    assert len(normalizers.NFC().normalize_str(text)) == 50
    bound = LengthBound.of(byte_level(normalizer=normalizers.NFC()))
    assert bound is not None
    assert bound.per_token == 4 * len("aaaa")


@pytest.mark.parametrize("side", ["lstrip", "rstrip"])
def test_an_added_token_takes_any_white_space_along(side: str) -> None:
    backend = byte_level()
    backend.add_tokens([AddedToken("<end>", special=True, **{side: True})])
    bound = LengthBound.of(backend)
    assert bound is not None
    text = " " * 500 + "<end>" + "\n" * 500
    assert tokens(backend, text) < 510
    assert not bound.spaces_count
    assert not bound.exceeded("<end>" + " " * 100_000, 1)
    assert bound.exceeded("<end> " * 100_000, 1)


def test_an_added_token_counts_as_it_is_looked_for() -> None:
    """NFKC makes the content longer, and the longer text is one token."""
    backend = byte_level(normalizer=normalizers.NFKC())
    backend.add_tokens([AddedToken("\ufdfa", normalized=True)])
    spelled = normalizers.NFKC().normalize_str("\ufdfa")
    assert tokens(backend, spelled) == 1
    bound = LengthBound.of(backend)
    assert bound is not None
    assert bound.per_token >= len(spelled)
    assert not bound.exceeded(spelled, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizers_of_published_shapes(kind: str) -> None:
    loaded = tokenizer(kind)
    rng = random.Random(7)
    longest = max((loaded.token_to_piece(index) for index in range(loaded.vocab_size)), key=len)
    for _ in range(60):
        parts = [longest.replace("▁", " ").replace("Ġ", " "), " ", "é", "the ", "\u0301", "  \n", "漢"]
        text = "".join(rng.choices(parts, k=rng.randrange(40)))
        ids = loaded.encode(text)
        assert loaded.encode(text, max_tokens=max(1, len(ids))) == ids
    if loaded.length_bound is not None:
        limit = loaded.length_bound.characters(3)
        with pytest.raises(PromptTooLong, match=rf"{limit + 1} characters; 3 tokens stand for at most {limit}"):
            loaded.encode("b" * (limit + 1), max_tokens=3)
