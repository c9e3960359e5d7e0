"""What is asked has the lengths, the prefixes and the kinds that the options say."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from serving.bench import datasets
from serving.bench.datasets import DatasetError, Lengths, Prefixes, PromptMaker
from serving.bench.records import BenchRequest
from tests.serving.harness import tokenizer

VOCAB = 500


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def ids(request: BenchRequest) -> tuple[int, ...]:
    assert request.token_ids is not None
    return request.token_ids


def test_synthetic_prompts():
    lengths = Lengths(100, 20, 0.5, prefix_len=9)
    requests = datasets.synthetic(200, lengths, PromptMaker("tokens", VOCAB), rng())
    sizes = [len(ids(request)) - 9 for request in requests]
    assert 50 <= min(sizes) < 60
    assert 140 < max(sizes) <= 150
    assert {10, 30} <= {request.output_len for request in requests} <= set(range(10, 31))
    assert len({ids(request)[:9] for request in requests}) == 1
    assert len({ids(request)[9:20] for request in requests}) == 200
    assert {token for request in requests for token in ids(request)} == set(range(3, VOCAB))
    assert requests == datasets.synthetic(200, lengths, PromptMaker("tokens", VOCAB), rng())
    exact = datasets.synthetic(3, Lengths(100, 20), PromptMaker("tokens", VOCAB), rng())
    assert [(len(ids(r)), r.output_len) for r in exact] == [(100, 20)] * 3


def test_prefixes_are_shared_evenly():
    requests = datasets.shared_prefix(10, Prefixes(64, 8, 3, 5), PromptMaker("tokens", VOCAB), rng())
    assert sorted(Counter(ids(request)[:64] for request in requests).values()) == [3, 3, 4]
    assert len({ids(request)[64:] for request in requests}) == 10
    assert {len(ids(request)) for request in requests} == {72}
    assert Counter(request.kind for request in requests) == {"first": 3, "shared": 7}
    seen = set()
    for request in requests:  # the first of a prefix comes before those that find it
        assert (request.kind == "first") == (ids(request)[:64] not in seen)
        seen.add(ids(request)[:64])


@pytest.mark.parametrize(("share", "places"), [(0.2, [2, 7]), (0.0, [5])])
def test_long_prompts_are_spread(share, places):
    requests = datasets.long_prompt(10, Lengths(16, 4), 300, share, PromptMaker("tokens", VOCAB), rng())
    assert [i for i, request in enumerate(requests) if request.kind == "long"] == places
    assert {(request.kind, len(ids(request))) for request in requests} == {("short", 16), ("long", 300)}


def test_conversations_grow_by_answers():
    (request,) = datasets.chat_turns(1, Lengths(5, 7), 3, PromptMaker("chat", VOCAB), rng())
    (first,) = request.messages or ()
    assert first["role"] == "user"
    assert len(first["content"].split()) == 5
    then = request.next_turn("so it is")
    assert [message["role"] for message in then.messages or ()] == ["user", "assistant", "user"]
    assert (then.messages or ())[1]["content"] == "so it is"
    assert len(then.turns) == 1
    assert not then.next_turn("yes").turns


def test_texts_have_their_length_with_a_tokenizer():
    make = PromptMaker("chat", VOCAB, tokenizer())
    text = make.words(37, rng())
    assert len(tokenizer().encode(text, add_special_tokens=False)) == 37
    assert len(PromptMaker("chat", VOCAB).words(37, rng()).split()) == 37


def test_files(tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [
        {"prompt": "Hello", "output_tokens": 3},
        {"prompt": [5, 6]},
        {"messages": [{"role": "user", "content": "Hi"}]},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    requests = datasets.from_file(path, 7, 9, rng(), chat=False)
    assert len(requests) == 7
    assert requests[:3] == requests[3:6]
    assert requests[0] == requests[6]
    assert all(requests[:3].count(request) == 1 for request in requests)
    assert {(r.text, r.token_ids, r.output_len) for r in requests if r.messages is None} == {
        ("Hello", None, 3),
        (None, (5, 6), 9),
    }
    path.write_text(json.dumps(lines[0]))
    (asked,) = datasets.from_file(path, 1, 9, rng(), chat=True)
    assert asked.messages == ({"role": "user", "content": "Hello"},)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON"),
        ("[]", "either prompt or messages"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ('{"prompt": 3}', "prompt must be"),
        ('{"prompt": [1, -1]}', "prompt must be"),
        ('{"prompt": [true]}', "prompt must be"),
        ('{"messages": [{"role": "user"}]}', "messages must be"),
        ('{"prompt": "a", "output_tokens": 0}', "output_tokens is 0"),
    ],
)
def test_lines_that_cannot_be_are_named(tmp_path, line, said):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line + "\n")
    with pytest.raises(DatasetError, match=said) as raised:
        datasets.from_file(path, 1, 9, rng(), chat=False)
    assert f"{path}:2" in str(raised.value)


def test_files_that_cannot_be(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DatasetError, match="cannot be read"):
            datasets.from_file(path, 1, 9, rng(), chat=False)
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(DatasetError, match="must have a line"):
        datasets.from_file(tmp_path / "empty", 1, 9, rng(), chat=False)
    (tmp_path / "ids").write_text('{"prompt": [1]}')
    with pytest.raises(DatasetError, match="chat endpoint"):
        datasets.from_file(tmp_path / "ids", 1, 9, rng(), chat=True)


def test_a_request_has_one_prompt():
    with pytest.raises(ValueError, match="must have one of"):
        BenchRequest(3)
    with pytest.raises(ValueError, match="must have one of"):
        BenchRequest(3, text="a", token_ids=(1,))
