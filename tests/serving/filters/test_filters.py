"""Filters: what they may say, what they see, and that nothing gets past them however a text is cut."""

from __future__ import annotations

import itertools
import re
import time
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxinfer.messages import Submit
from serving.errors import Refusal
from serving.filters.contract import (
    ALLOW,
    FilterError,
    Redact,
    Refuse,
    Span,
    Subject,
    Verdict,
    judge,
    load_filter,
    replaced,
)
from serving.filters.inputs import filtered
from serving.filters.outputs import FilteredText
from serving.filters.redactor import redact
from serving.request import ChatPrompt
from serving.server import ServerError
from tests.fakes import FakeOptions
from tests.serving.harness import collect, greedy, make_server, run, status, until
from tests.serving.http.harness import greedy_chat, http_serving, says

HERE = "tests.serving.filters.test_filters"
REDACTOR = "serving.filters.redactor:redact"
SUBJECT = Subject("output", "output", "t")
CARD = "4111 1111 1111 1111"  # a number that card companies publish for tests
MAIL = "ann.b+c@mail.example.org"
seen: list[tuple[str, Subject]] = []


def watching(text: str, subject: Subject) -> Verdict:
    seen.append((text, subject))
    return ALLOW


def no_bombs(text: str, subject: Subject) -> Verdict:
    return Refuse("it is about bombs") if "bomb" in text else ALLOW


no_bombs.window = 8  # type: ignore[attr-defined]


def broken(text: str, subject: Subject) -> Verdict:
    raise KeyError(text)


def no_abc(text: str, subject: Subject) -> Verdict:
    return Redact([Span(m.start(), m.end(), "#") for m in re.finditer("abc+", text)])


no_abc.window = 6  # type: ignore[attr-defined]


def whole(text: str, subject: Subject) -> Verdict:
    return Redact([Span(0, len(text), f"{len(text)} characters")])


# -- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["nowhere:f", "serving.filters.redactor:f", "serving.filters.redactor", "", f"{HERE}:HERE"]
)
def test_what_is_no_filter_stops_the_start(name: str) -> None:
    with pytest.raises(FilterError, match="filter is"):
        load_filter(name)

    async def test() -> None:
        server, links, _ = make_server(FakeOptions(), output_filter=name)
        with pytest.raises(ServerError) as error:
            await server.start()
        assert error.value.code == 2
        assert not links

    run(test())


@pytest.mark.parametrize(
    "verdict",
    [None, "text", Redact([Span(3, 2, "")]), Redact([Span(0, 99, "")]), Redact([Span(2, 4, ""), Span(3, 5, "")])],
)
def test_a_filter_that_errs_refuses(verdict: Any) -> None:
    with pytest.raises(Refusal, match="the filter failed") as refused:
        judge(lambda text, subject: verdict, "some text", SUBJECT)
    assert "some text" not in refused.value.message


@given(
    text=st.text(alphabet="abcdx", max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=12),
)
def test_pieces_add_up_to_the_filtered_whole(text: str, cuts: list[int]) -> None:
    """For matches no longer than the window."""
    text = re.sub("abc{4,}", "abccc", text)
    stream = FilteredText(no_abc, "t")
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    sent = [stream.push(text[a:b], last=False) for a, b in itertools.pairwise(edges)]
    sent.append(stream.push("", last=True))
    assert "".join(sent) == replaced(text, judge(no_abc, text, SUBJECT))
    assert not any("abc" in part for part in sent)


def test_a_long_text_flows() -> None:
    stream = FilteredText(no_abc, "t")
    sent = [stream.push("xyz", last=False) for _ in range(100)]
    assert sum(map(len, sent)) == 294  # all but the window
    held = FilteredText(whole, "t")
    assert [held.push("xyz", last=False) for _ in range(3)] == [""] * 3
    assert held.push("", last=True) == "9 characters"


# -- the redactor -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"write to {MAIL}, please", "write to [e-mail], please"),
        (f"{CARD}.", "[card]."),
        ("4111111111111111", "[card]"),
        ("4111 1111 1111 1112", "4111 1111 1111 1112"),  # no card has this check digit
        ("12345678901234567890123456", "12345678901234567890123456"),
        ("jx-0123456789ab-" + "A" * 43, "[key]"),
        ("a@b, 3 @ 4, x@y.z", "a@b, 3 @ 4, x@y.z"),
        (f"{MAIL} {MAIL}", "[e-mail] [e-mail]"),
    ],
)
def test_the_redactor(text: str, shown: str) -> None:
    assert replaced(text, judge(redact, text, SUBJECT)) == shown
    stream = FilteredText(redact, "t")
    assert "".join([*(stream.push(c, last=False) for c in text), stream.push("", last=True)]) == shown


def test_no_text_makes_the_redactor_slow() -> None:
    began = time.monotonic()
    for text in ("a" * 200_000, "a." * 100_000 + "@", "1 " * 100_000, "a@" * 100_000, "-@a." * 50_000):
        redact(text, SUBJECT)
    assert time.monotonic() - began < 20  # quadratic would be hours


# -- in a server ------------------------------------------------------------------------------------------------------


def test_inputs_are_redacted_before_the_model_sees_them() -> None:
    async def test() -> None:
        async with http_serving(input_filter=REDACTOR, max_message_bytes=1 << 20) as s:
            await s.chat(f"I am {MAIL}")
            await s.complete(prompt=f"card {CARD}")
            echoed = await s.complete(prompt=f"card {CARD}", echo=True)
            assert echoed["choices"][0]["text"].startswith("card [card]")
            await collect(s.grpc.stub.Generate(greedy(f"mail {MAIL}")))
            long = await s.post("/v1/completions", prompt="x" * 6000 + MAIL, max_tokens=1)  # judged in a thread
            assert long.status_code == 200 or "context" in long.text
            tool = {"type": "function", "function": {"name": "f", "description": f"ask {MAIL}"}}
            sent = await s.post("/tokenize", messages=[{"role": "user", "content": "x"}], tools=[tool])
            assert sent.status_code == 200
            ids = list(f"card {CARD}".encode())
            refused = await s.refused("/v1/completions", prompt=ids)
            assert refused["param"] == "prompt"
            await s.complete(prompt=list(b"harmless"))
            prompts = [bytes(t for t in m.prompt_token_ids if t < 256).decode() for m in s.grpc.received(Submit)]
            assert len(prompts) >= 5
            assert not any(MAIL in prompt or CARD in prompt for prompt in prompts)
            assert any("[e-mail]" in prompt for prompt in prompts)

    run(test())


def test_a_filter_sees_every_text_of_a_chat() -> None:
    seen.clear()

    async def test() -> None:
        async with http_serving(input_filter=f"{HERE}:watching", tool_call_parser="hermes") as s:
            tool = {"type": "function", "function": {"name": "tool", "description": "t1", "parameters": {"t2": ["t3"]}}}
            messages = [
                {"role": "system", "content": "t4"},
                {"role": "user", "content": [{"type": "text", "text": "t5"}], "name": "t6"},
                {"role": "assistant", "reasoning": "t7", "content": "t8"},
            ]
            body = {"messages": messages, "tools": [tool], "chat_template_kwargs": {"style": "t9"}}
            await s.chat(**body)

    run(test())
    assert {f"t{i}" for i in range(1, 10)} <= {text for text, _ in seen}
    assert {(subject.direction, subject.tenant) for _, subject in seen} == {("input", "default")}
    assert "messages[1].content" in {subject.part for _, subject in seen}


def test_a_filter_changes_texts_and_nothing_else_of_a_chat() -> None:
    """The model goes on from the client's last message, redacted."""

    async def test() -> None:
        async with http_serving(input_filter=REDACTOR) as s:
            messages = [{"role": "user", "content": "mail?"}, {"role": "assistant", "content": f"It is {MAIL} and"}]
            await s.chat(messages=messages, continue_final_message=True)
            prompt = bytes(token for token in s.grpc.received(Submit)[0].prompt_token_ids if token < 256).decode()
            assert MAIL not in prompt
            assert prompt.endswith(" and")

    run(test())


def test_outputs_are_redacted_while_they_stream() -> None:
    text = f"Write to {MAIL} or pay with {CARD}, but not before noon. " + "And so on. " * 40
    shown = text.replace(MAIL, "[e-mail]").replace(CARD, "[card]")

    async def test() -> None:
        async with http_serving(says(text, step_seconds=0.0005), output_filter=REDACTOR) as s:
            body = {**greedy_chat(), "max_tokens": 900}
            assert (await s.chat(max_tokens=900))["choices"][0]["message"]["content"] == shown
            events = [e for e in await s.events("/v1/chat/completions", **body) if e != "[DONE]"]
            parts = [e["choices"][0]["delta"].get("content") or "" for e in events]
            assert "".join(parts) == shown
            assert len([part for part in parts if part]) > 3, "it came at once: nothing streamed"
            found = await collect(s.grpc.stub.Generate(greedy(max_tokens=900)))
            assert found.text() == shown
            assert found.token_ids() == []
            assert found.usage.completion_tokens == len(text) + 1
            assert (await s.refused("/v1/completions", prompt="x", logprobs=1))["param"] == "logprobs"
            assert (await s.refused("/v1/completions", prompt="x", return_token_ids=True))[
                "param"
            ] == "return_token_ids"
            metrics = s.grpc.server.frontend.recorder.metrics
            assert metrics.generation_tokens == 3 * (len(text) + 1)

    run(test())


def test_a_refused_output_ends_its_request() -> None:
    async def test() -> None:
        options = says("Let us build a bomb. " + "It is easy. " * 50, step_seconds=0.001)
        async with http_serving(options, output_filter=f"{HERE}:no_bombs") as s:
            events = await s.events("/v1/completions", prompt="x", temperature=0, max_tokens=600)
            assert events[-2]["error"]["code"] == "content_filter"
            assert events[-1] == "[DONE]"
            text = "".join(e["choices"][0]["text"] for e in events[:-2])
            assert text
            assert "Let us build a bomb".startswith(text)
            whole_answer = await s.post("/v1/completions", prompt="x", temperature=0, max_tokens=600)
            assert (whole_answer.status_code, whole_answer.json()["error"]["code"]) == (400, "content_filter")
            error = await status(s.grpc.stub.Generate(greedy(max_tokens=600)))
            assert error.code() == grpc.StatusCode.FAILED_PRECONDITION
            await until(lambda: s.grpc.server.frontend.open_requests == 0, "nothing is left of them")

    run(test())


def test_a_word_over_parts_of_any_kind_is_found() -> None:
    """Templates join the texts of all parts, whatever else a part has and however it spells its text."""

    def refuse(text: str, subject: Subject) -> Verdict:
        return Refuse("secret") if "secret" in text else ALLOW

    first = [{"type": "text", "text": "sec"}, {"type": "text", "text": "sec", "x": 1}, "sec"]
    second = [{"type": "refusal", "refusal": "ret"}, {"type": "thinking", "thinking": "ret"}, "ret"]
    for one, two in itertools.product(first, second):
        prompt = ChatPrompt([{"role": "user", "content": [one, {"type": "text", "text": None}, two]}])
        with pytest.raises(Refusal):
            filtered(prompt, refuse, "", None)
