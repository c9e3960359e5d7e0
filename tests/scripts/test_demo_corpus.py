"""The demo model's text and tokenizer: the story grammar, the chats' answers, agreement of the two tokenizer files."""

from __future__ import annotations

import itertools
import random
import re
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # as `python scripts/train_demo.py` has it

from demo_corpus import chats, documents  # noqa: E402
from demo_corpus.grammar import Bindings, expand  # noqa: E402
from demo_corpus.stories import StoryTeller, sentence_case  # noqa: E402
from demo_training import hf_tokenizer  # noqa: E402
from demo_training import tokenizer as demo_tokenizer  # noqa: E402

VOCAB = 1024


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    demo_tokenizer.train_tokenizer(path, seed=0, vocab_size=VOCAB)
    return path


# --- corpus


def test_slots_keep_their_value_and_take_articles() -> None:
    rng = random.Random(0)
    bindings = Bindings(rng, {"he": "she"}, {"kind": ["owl", "fox", "bear"], "home": ["[a {kind} den|a {kind} den]"]})
    text = expand("{He} saw {a:kind}. {A:kind}, {kind}; {home}", bindings, rng)
    kind = bindings.value("kind")
    article = "an" if kind == "owl" else "a"
    assert text == f"She saw {article} {kind}. {article.capitalize()} {kind}, {kind}; a {kind} den"
    with pytest.raises(KeyError, match="nobody"):
        expand("{nobody}", bindings, rng)
    with pytest.raises(ValueError, match="does not come to an end"):
        expand("{x}", Bindings(rng, {"x": "{x}"}, {}), rng)


def test_every_template_of_every_plot_expands() -> None:
    teller, rng = StoryTeller(), random.Random(1)
    words = teller._words
    templates = [(plot, text) for plot in teller.plots for beat in plot["beat"] for text in beat["variants"]]
    templates += [(plot, plot["summary"]) for plot in teller.plots]
    shared = itertools.chain.from_iterable(words["shared"].values())
    templates += [(teller.plots[0], text) for text in shared]
    assert len(templates) > 300
    for plot, template in templates:
        text = expand(template, teller._bindings(rng, plot, teller.character(rng)), rng)
        assert not re.search(r"[{}\[\]|]", text), text
        assert text.count('"') % 2 == 0, text


def test_sentences_start_with_a_capital_but_not_after_a_quote() -> None:
    assert (
        sentence_case('the old miller sat. the end. "Go!" she said.') == 'The old miller sat. The end. "Go!" she said.'
    )


def test_the_seed_decides_the_corpus() -> None:
    first, again, other = (list(documents(seed, 50)) for seed in (3, 3, 4))
    assert first == again
    assert first[:20] == list(documents(3, 20))
    assert first != other


def test_chat_answers_are_exact() -> None:
    exchanges = [
        (question["content"], answer["content"])
        for document in documents(0, 1500)
        for question, answer in itertools.pairwise(document.messages)
        if question["role"] == "user"
    ]
    seen = {"sum": 0, "repeat": 0, "reverse": 0, "count": 0}
    for question, answer in exchanges:
        if match := re.fullmatch(r"(\d+) ([+-]) (\d+) = (\d+)", answer):
            a, sign, b, result = match.groups()
            assert int(result) == (int(a) + int(b) if sign == "+" else int(a) - int(b))
            assert re.findall(r"\d+", question)[:2] == [a, b]
            seen["sum"] += 1
        elif question.startswith(("Repeat: ", "Copy: ", "Say: ")):
            assert answer == question.split(": ")[1]
            seen["repeat"] += 1
        elif question.startswith(("Reverse: ", "Say backwards: ")):
            assert answer.split() == question.split(": ")[1].split()[::-1]
            seen["reverse"] += 1
        elif match := re.fullmatch(r"Count from (\d+) to (\d+)\.", question):
            first, last = map(int, match.groups())
            step = 1 if last >= first else -1
            assert answer == ", ".join(map(str, range(first, last + step, step)))
            seen["count"] += 1
        elif match := re.fullmatch(r"The capital of (.+) is (.+)\.", answer):
            assert chats.ATLAS[match[1]] == match[2]
    assert min(seen.values()) > 20


def test_about_three_tenths_of_the_tokens_are_chats(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    lengths = {True: 0, False: 0}
    for document in documents(0, 800):
        lengths[bool(document.messages)] += len(demo_tokenizer.encode_document(tokenizer, document)[0])
    assert 0.25 < lengths[True] / sum(lengths.values()) < 0.35


# --- tokenizer


def test_tokenizer_gives_back_every_text(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    assert tokenizer.vocab_size() == VOCAB
    for text in [*hf_tokenizer.ODD_TEXTS, *demo_tokenizer.plain_texts(9, 30)]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("\u6f22", out_type=str) == ["<0xE6>", "<0xBC>", "<0xA2>"]
    assert tokenizer.encode("1234", out_type=str) == ["1", "2", "3", "4"]
    assert tokenizer.encode("\n", out_type=str) == ["<0x0A>"]
    assert [tokenizer.piece_to_id(piece) for piece in ("<unk>", "<s>", "</s>", "<pad>")] == [0, 1, 2, 3]


def test_chat_is_encoded_with_its_markers(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    document = next(document for document in documents(0, 50) if document.messages)
    ids, learned = demo_tokenizer.encode_document(tokenizer, document)
    assert ids[0] == tokenizer.bos_id()
    assert ids[-2:] == [tokenizer.piece_to_id("<|end|>"), tokenizer.eos_id()]
    assert ids.count(tokenizer.piece_to_id("<|end|>")) == len(document.messages)
    assert ids[1] == tokenizer.piece_to_id(f"<|{document.messages[0]['role']}|>")
    # learned: bos, the answers with their <|end|>, eos; nothing that a user or a system says, and no role marker
    answers = [message["content"] for message in document.messages if message["role"] == "assistant"]
    text = tokenizer.decode([token for token, learn in zip(ids[1:-1], learned[1:-1], strict=True) if learn])
    assert text == "".join(f"{answer}<|end|>" for answer in answers)
    assert learned[0]
    assert learned[-1]


def test_stream_is_the_documents_in_order(tokenizer_file: Path) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    stream = demo_tokenizer.token_stream(tokenizer, 5, 30)
    encoded = [demo_tokenizer.encode_document(tokenizer, document) for document in documents(5, 30)]
    assert stream.ids.tolist() == list(itertools.chain.from_iterable(ids for ids, _ in encoded))
    assert stream.learned.tolist() == list(itertools.chain.from_iterable(learned for _, learned in encoded))
    assert 0 < stream.learned.mean() < 1


def test_a_tokenizer_json_that_disagrees_is_not_written(
    tokenizer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = demo_tokenizer.load_tokenizer(tokenizer_file)
    texts = list(demo_tokenizer.plain_texts(9, 50))
    hf_tokenizer.write(tmp_path / "good.json", tokenizer, texts)
    fast = Tokenizer.from_file(str(tmp_path / "good.json"))
    assert fast.encode("Once upon a time").ids == [tokenizer.bos_id(), *tokenizer.encode("Once upon a time")]
    whole = hf_tokenizer.merges(tokenizer)
    monkeypatch.setattr(hf_tokenizer, "merges", lambda _: whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"differs from tokenizer\.model"):
        hf_tokenizer.write(tmp_path / "bad.json", tokenizer, texts)
    assert {path.name for path in tmp_path.iterdir()} == {"good.json"}
