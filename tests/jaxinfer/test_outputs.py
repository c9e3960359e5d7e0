"""Tokens to text on the caller's side: deltas, stop strings that hide in byte tokens, ends, log-probabilities."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxinfer.messages import PromptScored, SequenceOutput, TokenLogprobs
from jaxinfer.outputs import RequestStream
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import Tokenizer, load_tokenizer

MODEL = Path(__file__).parent.parent / "goldens_text" / "vocabularies" / "sp_bpe.model"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "tokenizer.model").write_bytes(MODEL.read_bytes())
    return load_tokenizer(folder)


def play(tokenizer: Tokenizer, text: str, **params: object) -> tuple[RequestStream, list[object]]:
    """Feeds a text's tokens one by one, as the engine would, and stops where a stop string is found."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    stream = RequestStream("r", None, [5], SamplingParams(max_tokens=None, **params), tokenizer)  # type: ignore[arg-type]
    deltas = []
    for i, token in enumerate(ids):
        reason = "length" if i == len(ids) - 1 else None
        delta = stream.push(SequenceOutput("r", 0, token, None, reason, None, 0))
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
    assert stream.push(SequenceOutput("r", 0, 9, None, None, None, 0)) is None
    assert stream.push(SequenceOutput("r", 0, -1, None, "abort", None, 0)) is None
    assert len(stream.result.outputs[0].token_ids) == length


def test_end_tokens_are_ids_but_not_text(tokenizer: Tokenizer) -> None:
    stream = RequestStream("r", None, [5], SamplingParams(), tokenizer)
    (word, *_) = tokenizer.encode("cat", add_special_tokens=False)
    delta = stream.push(SequenceOutput("r", 0, word, None, "stop", word, 0))
    assert delta is not None
    assert (delta.text, delta.token_ids, delta.stop_reason) == ("", (word,), word)


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
        stream.push(SequenceOutput("r", 0, token, TokenLogprobs(token, -0.5, 1, ()), None, None, 0))
    assert stream.result.outputs[0].cumulative_logprob == -1.0
    assert len(stream.result.outputs[0].logprobs or []) == 2
