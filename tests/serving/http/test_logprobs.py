"""Spelling of tokens and the shapes of log-probabilities, with vocabularies of bytes and of byte fallback."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jaxinfer.messages import TokenLogprobs
from jaxinfer.text import Tokenizer
from serving.http.logprobs import CompletionLogprobs, Spelling, chat_logprobs, prompt_logprobs, ranked
from serving.http.tokens import Token, echoed
from serving.pace import Pace
from tests.jaxinfer.text.golden_cases import tokenizer as golden
from tests.serving.harness import tokenizer

REPORTS = Path(__file__).resolve().parents[2] / "cases" / "reports"
EURO = "€".encode()


def top_of(loaded: Tokenizer | None, entry: TokenLogprobs, open_: bytes = b"", alternatives: int = 20) -> Any:
    lists = CompletionLogprobs(Spelling(loaded), alternatives)
    asyncio.run(lists.add(Token(entry.token_id, entry, 0, 1, open_), 0))
    (top,) = msgspec.json.decode(msgspec.json.encode(lists.take()["top_logprobs"]))
    return top


def ids_of(loaded: Tokenizer, *pieces: str) -> list[int]:
    found = [loaded.token_id(piece) for piece in pieces]
    assert None not in found
    return [index for index in found if index is not None]


def test_of_tokens_with_one_spelling_the_likelier_is_kept():
    case = json.loads((REPORTS / "f11.json").read_text())
    loaded = golden("llama_json")
    (chosen, other) = ids_of(loaded, *(piece for piece, _ in case["entry"]["top"]))
    (_, first), (_, second) = case["entry"]["top"]
    entry = TokenLogprobs(chosen, case["entry"]["logprob"], 1, ((chosen, first), (other, second)))
    assert [top_of(loaded, entry)] == case["expect"]["top_logprobs"]


def test_a_chosen_token_keeps_its_own_beside_a_likelier_one_of_its_spelling():
    """top_logprobs[token] is its own, and a harness that asks whether it was the likeliest still sees the largest."""
    loaded = golden("llama_json")
    letter, byte, other = ids_of(loaded, "a", "<0x61>", "b")
    entry = TokenLogprobs(byte, -2.5, 3, ((letter, -0.1), (other, -1.0)))
    assert top_of(loaded, entry) == {"a": -2.5, "b": -1.0, "bytes:\\x61": -0.1}
    entry = TokenLogprobs(other, -1.0, 2, ((letter, -0.1), (other, -1.0), (byte, -2.5)))
    assert top_of(loaded, entry) == {"a": -0.1, "b": -1.0}


def test_alternatives_that_are_no_text_differ():
    entry = TokenLogprobs(EURO[0], -0.5, 1, ((EURO[0], -0.5), (0xE3, -1.0), (0xF0, -2.0)))
    assert top_of(tokenizer(), entry) == {"": -0.5, "bytes:\\xe3": -1.0, "bytes:\\xf0": -2.0}
    last = TokenLogprobs(EURO[2], -0.5, 1, ((EURO[2], -0.5), (ord("a"), -1.0), (0xAD, -2.0)))
    assert top_of(tokenizer(), last, EURO[:2]) == {"€": -0.5, "a": -1.0, "\u20ad": -2.0}


def test_more_alternatives_than_asked_for_are_cut_and_infinity_is_a_number():
    """Of an echoed prompt the engine may give more, where prompt_logprobs asks for them."""
    entry = TokenLogprobs(7, float("-inf"), 99, ((5, -0.5), (6, float("-inf"))))
    assert top_of(tokenizer(), entry, alternatives=1) == {"\x05": -0.5, "\x07": -9999.0}
    assert top_of(tokenizer(), entry) == {"\x05": -0.5, "\x06": -9999.0, "\x07": -9999.0}
    assert top_of(None, entry, alternatives=0) == {"token_id:7": -9999.0}


@pytest.mark.parametrize("name", ["byte_level", "byte_level_prefix", "llama_json", "gemma_json"])
@pytest.mark.parametrize("text", ["né 🙂 x", "漢字かな", "👩‍👩‍👧 и ё"])
def test_texts_of_tokens_add_up_to_the_text(name: str, text: str):
    loaded = golden(name)
    spelling = Spelling(loaded)
    ids = loaded.encode("word " + text, add_special_tokens=False)
    texts, open_, data = [], b"", b""
    for index in ids:
        texts.append(spelling.text(index, open_))
        open_ = spelling.open_after(index, open_)
        data += spelling.bytes_of(index)
    assert "".join(texts).lstrip() == "word " + text
    assert data.decode().lstrip() == "word " + text
    assert open_ == b""
    cut = next((i for i, index in enumerate(ids) if spelling.open_after(index)), None)
    if cut is not None:
        assert spelling.open_at_end(ids[: cut + 1]) == spelling.open_after(ids[cut])


def test_chat_entries():
    tokens = [
        Token(byte, TokenLogprobs(byte, -1.0, 1, ((byte, -1.0), (ord("\u0085"), -2.0))), 0, 1, EURO[:i])
        for i, byte in enumerate(EURO)
    ]
    content = json.loads(msgspec.json.encode(asyncio.run(chat_logprobs(tokens, Spelling(tokenizer()), Pace()))))
    assert [entry["token"] for entry in content] == ["", "", "€"]
    assert [entry["bytes"] for entry in content] == [[byte] for byte in EURO], "bytes are each token's own"
    assert content[0]["top_logprobs"][0] == {"token": "", "logprob": -1.0, "bytes": [EURO[0]]}
    as_ids = asyncio.run(chat_logprobs(tokens[:1], Spelling(tokenizer(), as_ids=True), Pace()))
    assert json.loads(msgspec.json.encode(as_ids))[0]["token"] == f"token_id:{EURO[0]}"


def test_prompts_in_vllms_shape():
    entry = TokenLogprobs(7, -3.0, 9, ((5, -0.5), (6, -0.6)))
    found = asyncio.run(prompt_logprobs([1, 7, 7], [entry, entry], Spelling(tokenizer()), 1))
    (first, second, third) = json.loads(msgspec.json.encode(found))
    assert first is None
    expected = {
        "7": {"logprob": -3.0, "rank": 9, "decoded_token": "\x07"},
        "5": {"logprob": -0.5, "rank": 1, "decoded_token": "\x05"},
    }
    assert second == third == expected
    of_bytes = [TokenLogprobs(byte, -1.0, 1, ()) for byte in EURO[1:]]
    spelled = json.loads(msgspec.json.encode(asyncio.run(prompt_logprobs(EURO, of_bytes, Spelling(tokenizer()), -1))))
    assert [entry[str(byte)]["decoded_token"] for entry, byte in zip(spelled[1:], EURO[1:], strict=True)] == ["", "€"]
    assert json.loads(asyncio.run(ranked(entry, Spelling(None), b"", Pace())))["6"]["decoded_token"] == "token_id:6"


def test_an_echoed_prompt_whose_text_spells_special_tokens():
    loaded = tokenizer()
    spelling = Spelling(loaded)

    def places(text: str, ids: list[int]) -> list[tuple[int, int]]:
        tokens = echoed(ids, [None] * len(ids), text, loaded, spelling.open_after)
        return [(token.begin, token.end) for token in tokens]

    assert places("ab", [256, 97, 98]) == [(0, 0), (0, 1), (1, 2)]
    assert places("a</s>b", [256, 97, 257, 98]) == [(0, 0), (0, 1), (1, 5), (5, 6)]
    assert places("ab", [256, 97, 257, 98]) == [(0, 0), (0, 1), (1, 1), (1, 2)]
    assert places("<s>ab", [256, 97, 98]) == [(0, 3), (3, 4), (4, 5)]
