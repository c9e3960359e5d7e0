"""However the news of an answer are merged on their way, its parts, their texts and their tokens are the same."""

from __future__ import annotations

import random

import pytest

from jaxinfer.messages import SequenceOutput, TokenLogprobs
from jaxinfer.outputs import Delta, RequestStream
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text.answers import Content, OutputParser, OutputParserNames, Reasoning
from serving.http.answers import GrowingAnswer
from serving.http.logprobs import Spelling
from serving.http.parts import Part, joined
from serving.http.tokens import ShownTokens
from tests.jaxinfer.text.golden_cases import tokenizer

FORM = OutputParserNames("hermes", "think")
CALL = '<tool_call>{"name": "f", "arguments": {"q": "漢 \\"x\\""}}</tool_call>'
HARMONY = OutputParserNames("harmony", "harmony")
START, ANALYSIS, FINAL = "<|start|>assistant", "<|channel|>analysis<|message|>", "<|channel|>final<|message|>"
CHANNELS = [
    *(f"<|end|>{START}{ANALYSIS}", f"<|end|>{START}{FINAL}", "<|end|>", "<|call|>", ANALYSIS, FINAL, "final", "json"),
    f'<|end|>{START}<|channel|>commentary to=functions.f <|constrain|>json<|message|>{{"q": "漢 f"}}<|call|>',
    *(
        f"<|end|>{START}<|channel|>commentary<|message|>",
        "assistant",
        "\n",
        " word",
        "🙂",
        "é",
        "STOP",
        "ST",
        "<",
        "\n\n",
    ),
]
PIECES = ["<think>", "</think>", CALL, "\n", " word", "🙂", "the cat", "<tool_call>", "é", "STOP", "ST", "<", "\n\n"]


def deltas(text: str, name: str, stops: list[str]) -> list[Delta]:
    """What the engine's side tells, token by token."""
    loaded = tokenizer(name)
    ids = loaded.encode(text, add_special_tokens=False)
    params = SamplingParams(max_tokens=None, stop=stops, logprobs=1)
    stream = RequestStream("r", None, loaded.encode("x", add_special_tokens=False), params, loaded)
    found = []
    for i, token in enumerate(ids):
        entry = TokenLogprobs(token, -float(i), 1, ((token, -float(i)),))
        reason = "length" if i == len(ids) - 1 else None
        delta = stream.push(SequenceOutput("r", 0, (token,), (entry,), reason, None, 0))
        assert delta is not None
        found.append(delta)
        if delta.finish_reason is not None:
            break
    return found


def parts(
    form: OutputParserNames, news: list[Delta], name: str, longest: int, random_: random.Random, *, hidden: bool
) -> list[Part]:
    """Of the same deltas, up to `longest` of them merged."""
    spelling = Spelling(tokenizer(name))
    parser = OutputParser(form, tools={"f"})
    answer = GrowingAnswer(
        parser, tokenizer(name), form.marks(tools=True), ShownTokens(spelling.open_after),
        tells_tokens=True, single_call=False, with_reasoning=not hidden,
    )  # fmt: skip
    found: list[Part] = []
    at = 0
    while at < len(news):
        piece = Delta(0)
        for delta in news[at : at + random_.randint(1, longest)]:
            piece.add(delta)
            at += 1
        for more, _ in answer.add(piece):
            found += more
    assert answer.finish_reason is not None
    return joined(found)


@pytest.mark.parametrize(
    ("form", "pieces", "opening"), [(FORM, PIECES, "<think>"), (HARMONY, CHANNELS, ANALYSIS)], ids=["tags", "channels"]
)
def test_any_merge_gives_the_same_parts(form: OutputParserNames, pieces: list[str], opening: str):
    for seed in range(120):
        random_ = random.Random(seed)
        name = random_.choice(["byte_level", "llama_json", "gemma_json"])
        text = "".join(random_.choices(pieces, k=random_.randint(1, 12)))
        if random_.random() < 0.6:
            text = opening + text
        news = deltas(text, name, random_.choice([[], ["STOP"], ["STOP", "🙂"]]))
        one = parts(form, news, name, 1, random_, hidden=False)
        for longest in (3, 50):
            assert parts(form, news, name, longest, random_, hidden=False) == one, (seed, text)
        tokens = [token for part in one for token in part.tokens]
        assert [token.token_id for token in tokens] == [token for delta in news for token in delta.token_ids]
        assert [token.entry for token in tokens] == [entry for delta in news for entry in delta.logprobs]
        # Hidden, the same is left without the reasoning.
        kept = [part for part in one if not isinstance(part.event, Reasoning)]
        assert parts(form, news, name, 3, random_, hidden=True) == joined(kept)
        told = "".join(delta.text for delta in news)
        for event, own in one:
            if isinstance(event, Content) and own:
                lines = event.text.split("\n") if form is HARMONY else [event.text]  # of several messages
                assert all(line in told[own[0].begin : own[-1].end] for line in lines) or own[-1].end >= len(told)
