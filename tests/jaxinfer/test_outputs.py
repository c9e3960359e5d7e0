"""Tokens to text on the caller's side: deltas, stop strings that hide in byte tokens, ends, log-probabilities."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from jaxinfer.messages import PromptScored, SequenceOutput, TokenLogprobs
from jaxinfer.outputs import RequestStream
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import AnswerReading, Tokenizer, load_tokenizer
from jaxinfer.text.answers import OutputParserNames
from tests.fakes import EOS, write_tokenizer

MODEL = Path(__file__).parent.parent / "goldens_text" / "vocabularies" / "sp_bpe.model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(MODEL.read_bytes())
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def characters(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Ids are bytes, 257 is </s>."""
    return load_tokenizer(write_tokenizer(tmp_path_factory.mktemp("bytes")))


def play_ids(
    tokenizer: Tokenizer,
    ids: list[int],
    params: SamplingParams,
    *,
    reason: str = "length",
    reading: AnswerReading | None = None,
) -> RequestStream:
    """Feeds ids one by one, the last one with the engine's reason to end."""
    stream = RequestStream("r", None, [5], params, tokenizer, reading=reading)
    for i, token in enumerate(ids):
        ends = reason if i == len(ids) - 1 else None
        stopped = token if ends == "stop" else None
        stream.push(SequenceOutput("r", 0, (token,), None, ends, stopped, 0))
        if stream.finished:
            break
    return stream


def play(tokenizer: Tokenizer, text: str, **params: object) -> tuple[RequestStream, list[object]]:
    """Feeds a text's tokens one by one, as the engine would, and stops where a stop string is found."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = RequestStream("r", None, [5], SamplingParams(max_tokens=None, **params), tokenizer)  # type: ignore[arg-type]
    deltas = []
    for i, token in enumerate(ids):
        reason = "length" if i == len(ids) - 1 else None
        delta = stream.push(SequenceOutput("r", 0, (token,), None, reason, None, 0))
        deltas.append(delta)
        if delta is None or delta.finish_reason is not None:
            break
    return stream, deltas


def test_deltas_add_up(tokenizer: Tokenizer) -> None:
    text = "the cat 🙂 sat on 漢字 and é"
    stream, deltas = play(tokenizer, text)
    output = stream.result.outputs[0]
    assert output.text == "".join(d.text for d in deltas)  # type: ignore[attr-defined]
    assert output.text.strip() == text
    assert (output.finish_reason, stream.finished) == ("length", True)


@pytest.mark.parametrize("stop", ["\n", "🙂", "sat on", "字"])
def test_stop_strings_end_the_sequence_at_once(tokenizer: Tokenizer, stop: str) -> None:
    text = "the cat 🙂 sat on 漢字 and\nsomething more that is never shown"
    stream, deltas = play(tokenizer, text, stop=[stop])
    output = stream.result.outputs[0]
    assert output.text.lstrip() == text[: text.index(stop)].lstrip()
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert deltas[-1].stopped  # type: ignore[attr-defined]
    upto = tokenizer.encode(text[: text.index(stop) + len(stop)], add_special_tokens=False)
    assert len(output.token_ids) <= len(upto) + 1, "the engine was told late"


def test_news_after_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    stream, _ = play(tokenizer, "one two three", stop=["two"])
    length = len(stream.result.outputs[0].token_ids)
    assert stream.push(SequenceOutput("r", 0, (9,), None, None, None, 0)) is None
    assert stream.push(SequenceOutput("r", 0, (), None, "abort", None, 0)) is None
    assert len(stream.result.outputs[0].token_ids) == length


def as_vllm(pieces: list[str], stop: str, min_tokens: int) -> tuple[str, int]:
    """Text and number of tokens as vLLM 0.32's v1/engine/detokenizer.py has them for one stop string and tokens that
    come one by one: after each token beyond min_tokens it searches what ends in that token's text."""
    text = ""
    for count, piece in enumerate(pieces, 1):
        before, text = len(text), text + piece
        if count <= min_tokens:
            continue
        ends = [end for end in range(before + 1, len(text) + 1) if text[:end].endswith(stop)]
        if ends:
            return text[: ends[0] - len(stop)], count
    return text, len(pieces)


@pytest.mark.parametrize("min_tokens", range(14))
@pytest.mark.parametrize("stop", ["the", " ", "e cat", "\n\n", "🙂", "tt", "字"])
def test_stop_strings_end_behind_min_tokens(tokenizer: Tokenizer, stop: str, min_tokens: int) -> None:
    text = "the the cat\n\n\n🙂🙂 ttt the 漢字字 \n\nthe"
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = [tokenizer.decode([5, *ids[: i + 1]]).removeprefix(tokenizer.decode([5])) for i in range(len(ids))]
    settled = ["", *(shown.rstrip("\ufffd") if shown.endswith("\ufffd") else shown for shown in whole)]
    for i in range(1, len(settled)):  # a run of bytes with an open character shows nothing of itself
        if not settled[i].startswith(settled[i - 1]):
            settled[i] = settled[i - 1]
    pieces = [after[len(before) :] for before, after in itertools.pairwise(settled)]
    expected, count = as_vllm(pieces, stop, min_tokens)
    stream = play_ids(tokenizer, ids, SamplingParams(max_tokens=None, stop=[stop], min_tokens=min_tokens))  # type: ignore[arg-type]
    output = stream.result.outputs[0]
    assert (output.text, len(output.token_ids)) == (expected, count)
    assert (output.finish_reason == "stop") == (count < len(ids) or output.stop_reason == stop)


@pytest.mark.parametrize("min_tokens", range(6))
def test_a_stop_string_may_begin_in_the_first_tokens(characters: Tokenizer, min_tokens: int) -> None:
    params = SamplingParams(max_tokens=None, stop=("stop",), min_tokens=min_tokens)
    output = play_ids(characters, list(b"bstop"), params).result.outputs[0]
    ended = min_tokens < 5
    assert (output.text, output.finish_reason) == (("b", "stop") if ended else ("bstop", "length"))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_an_incomplete_character_is_not_yet_a_replacement(
    tokenizer: Tokenizer, characters: Tokenizer, kind: str
) -> None:
    chosen = characters if kind == "bytes" else tokenizer
    params = SamplingParams(max_tokens=None, stop=("\ufffd",))
    whole = chosen.encode("a漢字b", add_special_tokens=False)
    output = play_ids(chosen, whole, params).result.outputs[0]
    assert (output.text.strip(), output.finish_reason, output.stop_reason) == ("a漢字b", "length", None)
    # Cut inside a character: the text shows it, and it is no stop string that was written.
    ids = [chosen.token_id("<0xE6>" if kind == "sentencepiece" else "æ")]
    assert ids[0] is not None
    cut = play_ids(chosen, [*chosen.encode("a", add_special_tokens=False), *ids], params).result.outputs[0]
    assert (cut.text.strip(), cut.finish_reason, cut.stop_reason) == ("a\ufffd", "length", None)
    # A byte that nothing can complete any more is one.
    broken = [*ids, *chosen.encode("a", add_special_tokens=False)]
    output = play_ids(chosen, broken, params).result.outputs[0]
    assert (output.text, output.finish_reason, output.stop_reason) == ("", "stop", "\ufffd")


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("token", "spelled"), [(ord("w"), "w"), (EOS, "</s>")])
def test_the_token_that_ends_a_text_is_kept_where_the_request_says_so(
    characters: Tokenizer, include: bool, skip: bool, token: int, spelled: str
) -> None:
    """As vLLM 0.32, for stop tokens and end-of-sequence alike; skip_special_tokens still drops special ones."""
    params = SamplingParams(
        max_tokens=None,
        stop_token_ids=(ord("w"),),
        include_stop_str_in_output=include,
        skip_special_tokens=skip,
    )
    output = play_ids(characters, [*b"t", token], params, reason="stop").result.outputs[0]
    shown = include and not (skip and token == EOS)
    assert (output.text, output.token_ids) == ("t" + (spelled if shown else ""), [ord("t"), token])
    assert output.stop_reason == (None if token == EOS else token)


def test_stop_strings_of_every_sequence_wait_for_its_own_answer(characters: Tokenizer) -> None:
    reading = AnswerReading(OutputParserNames(reasoning="think"))
    params = SamplingParams(max_tokens=None, n=2, stop=("stop",))
    stream = RequestStream("r", None, [5], params, characters, reading=reading)
    for token in b"<think>a stop</think>b stop":
        for index in (0, 1):
            if index == 0 or token != ord("<"):  # the second one never opens its reasoning
                stream.push(SequenceOutput("r", index, (token,), None, None, None, 0))
    assert [output.text for output in stream.result.outputs] == ["<think>a stop</think>b ", "think>a "]
    assert stream.finished


def test_a_long_text_is_put_together_when_it_is_read(characters: Tokenizer) -> None:
    """What a token adds is one piece, however long the text before it is."""
    stream = RequestStream("r", None, [5], SamplingParams(max_tokens=None), characters)
    for token in b"abc" * 1000:
        stream.push(SequenceOutput("r", 0, (token,), None, None, None, 0))
    output = stream.result.outputs[0]
    assert len(output._pieces) == 3000
    assert output.text == "abc" * 1000
    assert len(output._pieces) == 1
    stream.push(SequenceOutput("r", 0, (ord("d"),), None, "length", None, 0))
    assert output.text == "abc" * 1000 + "d"
    assert "finish_reason='length'" in repr(output)
    output.text = "other"
    assert output.text == "other"


def test_end_tokens_are_ids_but_not_text(tokenizer: Tokenizer) -> None:
    stream = RequestStream("r", None, [5], SamplingParams(), tokenizer)
    (word, *_) = tokenizer.encode("cat", add_special_tokens=False)
    delta = stream.push(SequenceOutput("r", 0, (word,), None, "stop", word, 0))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("", [word], word)


def test_prompt_logprobs_survive_a_second_computation() -> None:
    """A preempted request computes its prompt again; positions already there stay."""
    stream = RequestStream("r", None, [1, 2, 3, 4], SamplingParams(prompt_logprobs=0), None)
    entries = [TokenLogprobs(i, -float(i), 1, ()) for i in (2, 3, 4)]
    stream.push_prompt(PromptScored("r", 0, tuple(entries[:2])))
    stream.push_prompt(PromptScored("r", 0, tuple(entries)))
    assert stream.result.prompt_logprobs == [None, *entries]


def test_logprobs_accumulate() -> None:
    stream = RequestStream("r", None, [1], SamplingParams(logprobs=0), None)
    for token in (4, 5):
        stream.push(SequenceOutput("r", 0, (token,), (TokenLogprobs(token, -0.5, 1, ()),), None, None, 0))
    assert stream.result.outputs[0].cumulative_logprob == -1.0
    assert len(stream.result.outputs[0].logprobs or []) == 2


@pytest.mark.parametrize("at_once", [2, 3, 7])
@pytest.mark.parametrize("stop", [(), ("wor",), ("lo w", "zz")])
@pytest.mark.parametrize("min_tokens", [0, 9])
def test_tokens_in_the_plural_read_like_one_by_one(
    characters: Tokenizer, at_once: int, stop: tuple[str, ...], min_tokens: int
) -> None:
    """What comes behind a stop string in one output is dropped, as what comes in a later one is."""
    params = SamplingParams(max_tokens=None, logprobs=0, stop=stop, min_tokens=min_tokens)
    ids = [*b"hello world, hello wor", 259]
    entries = tuple(TokenLogprobs(token, -float(i), 1, ()) for i, token in enumerate(ids))

    def read(size: int) -> tuple[object, list[int]]:
        stream, ends = RequestStream("r", None, [5], params, characters), list[int]()
        for i in range(0, len(ids), size):
            last = i + size >= len(ids)
            reason, token = ("stop", 259) if last else (None, None)
            new, scored = tuple(ids[i : i + size]), entries[i : i + size]
            delta = stream.push(SequenceOutput("r", 0, new, scored, reason, token, 0))
            if delta is not None:
                assert len(delta.ends) == len(delta.token_ids) == len(delta.logprobs)
                ends += delta.ends
        output = stream.result.outputs[0]
        found = output.text, output.token_ids, output.logprobs, output.finish_reason, output.stop_reason
        return (*found, output.cumulative_logprob), ends

    assert read(at_once) == read(1)


def test_a_text_that_is_complete_keeps_its_last_token(characters: Tokenizer) -> None:
    """A grammar lets nothing follow: no token was drawn that ends the text and is none of it."""
    stream = RequestStream("r", None, [5], SamplingParams(), characters)
    stream.push(SequenceOutput("r", 0, (ord("4"),), None, None, None, 0))
    delta = stream.push(SequenceOutput("r", 0, (ord("2"),), None, "stop", None, 0))
    assert delta is not None
    assert (stream.result.outputs[0].text, delta.finish_reason, delta.stop_reason) == ("42", "stop", None)
