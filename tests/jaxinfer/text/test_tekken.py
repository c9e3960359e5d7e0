"""tekken.json: ids are those of its own rule, written out here; what is wrong with a file is named."""

from __future__ import annotations

import base64
import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.text import TokenizerError, load_tokenizer
from tests.golden_recipe import GOLDENS

PATTERN = r" ?[A-Za-z]+| ?[^\sA-Za-z]+|\s+"
LISTED = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>"]
SPECIALS = 9  # three of them without a name
TEXT = "the sea of the other shore, the sand and the bath there; aaaa abab  then\n\n\tthis: thé 海 is 100% here === "


def trained(size: int) -> list[bytes]:
    """A vocabulary as byte-pair encoding makes it of TEXT: the bytes, then the pair that is there most, and so on."""
    words = [[bytes((byte,)) for byte in word.encode()] for word in re.findall(PATTERN, TEXT * 2 + "a" * 40)]
    vocab = [bytes((byte,)) for byte in range(256)]
    while len(vocab) < size:
        counts: dict[bytes, int] = {}
        for word in words:
            for left, right in itertools.pairwise(word):
                counts[left + right] = counts.get(left + right, 0) + 1
        counts = {token: count for token, count in counts.items() if token not in vocab}
        token = max(counts, key=lambda token: (counts[token], token))
        vocab.append(token)
        words = [joined(word, {token: 0}) for word in words]
    return vocab


def joined(word: list[bytes], ranks: dict[bytes, int]) -> list[bytes]:
    """Neighbours are joined while their bytes are a token, those of the lowest rank first, and of them the leftmost."""
    while True:
        found = [(ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(word)) if a + b in ranks]
        if not found:
            return word
        _, i = min(found)
        word = [*word[:i], word[i] + word[i + 1], *word[i + 2 :]]


VOCAB = trained(300)


def document(**changes: Any) -> dict[str, Any]:
    file: dict[str, Any] = {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(VOCAB),
            "default_vocab_size": 290 + SPECIALS,
            "default_num_special_tokens": SPECIALS,
            "version": "v11",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for i, token in enumerate(VOCAB)
        ],
        "special_tokens": [{"rank": i, "token_str": token, "is_control": True} for i, token in enumerate(LISTED)],
    }
    file["config"] |= changes.pop("config", {})
    return {key: value for key, value in (file | changes).items() if value is not ...}


def write(folder: Path, file: Any) -> Path:
    (folder / "tekken.json").write_text(file if isinstance(file, str) else json.dumps(file))
    return folder


def expected(text: str) -> list[int]:
    """Ids by the file's own rule, with BOS. Of the vocabulary the first 290 tokens count."""
    ranks = {token: rank for rank, token in enumerate(VOCAB[:290])}
    ids = [1]
    for word in re.findall(PATTERN, text):
        parts = [word.encode()] if word.encode() in ranks else joined([bytes((b,)) for b in word.encode()], ranks)
        ids += [ranks[part] + SPECIALS for part in parts]
    return ids


def test_ids_and_texts_are_those_of_the_rule(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, document()))
    assert tokenizer.vocab_size == 290 + SPECIALS
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 5)
    generator = random.Random(4)
    pieces = [*TEXT.split(" "), " ", "\n", "aa", "a", "the", "thé", "=", "海", "👩‍👩‍👧"]
    texts = [TEXT, "", "a" * 33, *("".join(generator.choices(pieces, k=12)) for _ in range(300))]
    longest = 0
    for text in texts:
        ids = tokenizer.encode(text)
        assert ids == expected(text), text
        assert tokenizer.decode(ids) == text
        longest = max(longest, max(len(VOCAB[index - SPECIALS]) for index in ids))
    assert longest > 4  # tokens of several merges were met
    assert tokenizer.encode("the", add_special_tokens=False) == expected("the")[1:]
    assert tokenizer.length_bound is not None
    assert b"".join(map(tokenizer.token_bytes, expected("thé")[1:])) == "thé".encode()


def test_special_tokens_are_found_in_texts_and_hidden(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, document()))
    ids = tokenizer.encode("[INST]the[/INST]<SPECIAL_8>", add_special_tokens=False)
    assert ids == [3, *expected("the")[1:], 4, 8]
    assert tokenizer.decode(ids) == "the"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "[INST]the[/INST]<SPECIAL_8>"
    assert all(tokenizer.is_special(index) for index in range(SPECIALS))


def test_files_up_to_v7_need_not_list_their_special_tokens(tmp_path: Path) -> None:
    config = {"version": "v3", "default_num_special_tokens": 25, "default_vocab_size": 315}
    tokenizer = load_tokenizer(write(tmp_path, document(special_tokens=..., config=config)))
    named = ["<unk>", "<s>", "</s>", "[INST]", "[TOOL_CALLS]", "[TOOL_CONTENT]", "<SPECIAL_20>"]
    assert [tokenizer.token_id(token) for token in named] == [0, 1, 2, 3, 9, 19, 20]
    assert tokenizer.pad_token_id == 11
    assert tokenizer.encode("a")[1:] == [25 + ord("a")]


def test_a_tokenizer_json_counts_before_it_and_templates_come_along(tmp_path: Path) -> None:
    write(tmp_path, document())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "chat_template.json").write_text('{"chat_template": "[INST]{{ messages[0].content }}[/INST]"}')
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode_chat([{"role": "user", "content": "the"}]) == [3, *expected("the")[1:], 4]
    vocabularies = GOLDENS.parent / "goldens_text" / "vocabularies"
    (tmp_path / "tokenizer.json").write_bytes((vocabularies / "word_level.json").read_bytes())
    assert load_tokenizer(tmp_path).vocab_size != tokenizer.vocab_size


def test_templates_of_the_tokenizer_count_before_that_of_the_whole(tmp_path: Path) -> None:
    write(tmp_path, document())
    (tmp_path / "chat_template.json").write_text('{"chat_template": "whole"}')
    chat = [{"role": "user", "content": "the"}]
    assert load_tokenizer(tmp_path).render_chat(chat) == "whole"
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "own"}')
    assert load_tokenizer(tmp_path).render_chat(chat) == "own"
    (tmp_path / "chat_template.json").write_text('{"chat_template": ["whole"]}')
    with pytest.raises(TokenizerError, match=r"chat_template\.json: chat_template must be a string"):
        load_tokenizer(tmp_path)


def with_vocab(change: Callable[[list[dict[str, Any]]], Any]) -> dict[str, Any]:
    file = document()
    change(file["vocab"])
    return file


REFUSED: list[tuple[Any, str]] = [
    ("[]", "tekken.json must hold a JSON object"),
    ("{", "tekken.json is not valid JSON"),
    (document(config={"pattern": None}), "config must be an object with a pattern"),
    (document(config={"pattern": "("}), "cannot build the tokenizer"),
    (document(vocab={}), "vocab must be a list of tokens, not dict"),
    (document(config={"default_vocab_size": 264}), "default_vocab_size is 264; .* from 265 to 309"),
    (document(config={"default_vocab_size": 310}), "default_vocab_size is 310; .* from 265 to 309"),
    (document(config={"default_vocab_size": "x"}), "default_vocab_size must be a number of tokens, got 'x'"),
    (document(config={"default_num_special_tokens": 5}), "default_num_special_tokens is 5; there are 6"),
    (document(special_tokens=...), "has no special_tokens, which version 'v11' must list"),
    (document(special_tokens=["<s>"]), "special_tokens must be a list of objects"),
    (document(special_tokens=[{"rank": 1, "token_str": "<s>"}]), "ranks from 0 without holes"),
    (document(special_tokens=[{"rank": 0, "token_str": "<t>"}]), "special_tokens lack '<s>'"),
    (document(special_tokens=[{"rank": 0, "token_str": "the"}]), r"special tokens \['the'\] are tokens of the"),
    (with_vocab(lambda vocab: vocab[7].update(rank=8)), r"vocab\[7\] must be an object with rank 7"),
    (with_vocab(lambda vocab: vocab[260].update(token_bytes="?")), r"vocab\[260\]\.token_bytes must be base64"),
    (with_vocab(lambda vocab: vocab[260].update(token_bytes="")), r"vocab\[260\]\.token_bytes is b''"),
    (with_vocab(lambda vocab: vocab[5].update(token_bytes="QQ==")), "first 256 tokens must be the bytes in order"),
    (with_vocab(lambda vocab: vocab[260].update(token_bytes="QQ==")), r"vocab\[260\] has the bytes of vocab\[65\]"),
]


@pytest.mark.parametrize(("file", "message"), REFUSED)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, file: Any, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(write(tmp_path, file))
