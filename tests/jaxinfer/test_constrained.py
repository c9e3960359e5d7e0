"""Answers that follow grammars, on the model that comes with the project."""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from jaxinfer.constraints.matching import Matching
from jaxinfer.messages import Abort, Drain, Drained, Rejected, StepOutputs, Submit
from jaxinfer.model_path import demo_path
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import load_tokenizer
from tests.jaxinfer.harness import GREEDY, Harness, Heard, build_demo

pytest.importorskip("llguidance")

TOKENIZER = load_tokenizer(demo_path())
PROMPT = TOKENIZER.encode("Who came to the village that morning, and what did they bring? Name one of them.")
SAMPLED = SamplingParams(temperature=1.5, max_tokens=90)


def grammar(**of: Any) -> str:
    return json.dumps({"grammars": [of]})


SCHEMA = {
    "type": "object",
    "properties": {
        "the_first_name": {"type": "string", "maxLength": 12},
        "age_in_years": {"type": "integer", "minimum": 0, "maximum": 999},
        "came_from": {"enum": ["the north", "the south", "nowhere"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["the_first_name", "age_in_years", "came_from", "tags"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def is_of_schema(text: str) -> bool:
    found = json.loads(text)
    return (
        list(found) == SCHEMA["required"]  # type: ignore[comparison-overlap]
        and isinstance(found["the_first_name"], str)
        and len(found["the_first_name"]) <= 12
        and 0 <= found["age_in_years"] <= 999
        and found["came_from"] in ("the north", "the south", "nowhere")
        and all(isinstance(tag, bool) for tag in found["tags"])
    )


PERSON = grammar(json_schema=SCHEMA)
CODE = grammar(lark_grammar="start: /[A-Z]{2,5}-[0-9]{1,4}/")
OPEN = grammar(lark_grammar="start: /[a-z ]+/")  # may end after any token but the first, and need not
CHOICE = grammar(lark_grammar='start: "the answer is yes" | "the answer is no, and it stays no" | "no"')
CHECKS: dict[str, Callable[[str], object]] = {
    PERSON: is_of_schema,
    CODE: lambda text: re.fullmatch("[A-Z]{2,5}-[0-9]{1,4}", text),
    OPEN: lambda text: re.fullmatch("[a-z ]+", text),
    CHOICE: lambda text: text in ("the answer is yes", "the answer is no, and it stays no", "no"),
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Harness]:
    harness = build_demo()
    yield harness
    harness.loop.scheduler.check_idle()


def heard(engine: Harness, name: str, index: int = 0) -> Heard:
    return engine.heard[name, index]


def text_of(answer: Heard) -> str:
    return TOKENIZER.decode(answer.tokens)


def check(engine: Harness, name: str, constraint: str, n: int = 1) -> None:
    for index in range(n):
        answer = heard(engine, name, index)
        assert answer.finish_reason in ("stop", "length"), answer
        if answer.finish_reason == "stop":
            assert CHECKS[constraint](text_of(answer)), text_of(answer)


def test_answers_follow_their_grammars_and_others_do_not_notice(engine: Harness) -> None:
    """Rows with and without grammars in the same steps, against each alone: the same tokens."""
    requests: list[tuple[str, SamplingParams, int]] = []
    for seed in range(4):
        for constraint in ("", *CHECKS):
            requests.append((constraint, SAMPLED, seed))
    before = engine.loop.runner.compilations
    names = [engine.submit(PROMPT[: 3 + seed], p, seed=seed, constraint=c) for c, p, seed in requests]
    engine.run()
    ended = 0
    for name, (constraint, params, seed) in zip(names, requests, strict=True):
        answer = heard(engine, name)
        if constraint:
            check(engine, name, constraint)
            ended += answer.finish_reason == "stop"
        alone = engine.generate(PROMPT[: 3 + seed], params, seed=seed, constraint=constraint)
        assert (alone.tokens, alone.finish_reason) == (answer.tokens, answer.finish_reason)
    assert ended >= 10  # half of them: what the others are cut off in depends on the weights
    assert engine.loop.runner.compilations == before == 0
    assert engine.loop.scheduler.stats.forced_tokens > 50


@pytest.mark.parametrize(
    "changes",
    [
        {"n": 3},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "n": 2},
        {"top_k": 3, "top_p": 0.9, "min_p": 0.05},
        {"temperature": 0},
        {"min_tokens": 40},
        {"ignore_eos": True},
        {"logit_bias": {TOKENIZER.encode(" zebra", add_special_tokens=False)[0]: 100.0}},
        {"prompt_logprobs": 2},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_sampling_field_keeps_the_grammar(engine: Harness, changes: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.5, "max_tokens": 90, **changes})
    names = {c: engine.submit(PROMPT, params, seed=11, constraint=c) for c in CHECKS}
    engine.run()
    for constraint, name in names.items():
        check(engine, name, constraint, params.n)
    assert heard(engine, names[CODE]).finish_reason == "stop", "it is complete at latest after its last digit"


@pytest.mark.parametrize("constraint", CHECKS, ids=["person", "code", "open", "choice"])
@pytest.mark.parametrize("changes", [{}, {"repetition_penalty": 1.4, "presence_penalty": 0.7}], ids=["", "penalties"])
def test_forced_tokens_are_those_that_come_one_by_one(
    engine: Harness, constraint: str, changes: dict[str, Any]
) -> None:
    """With log-probabilities no token is taken before the step that scores it."""
    for seed in range(3):
        params = SAMPLED.with_changes(**changes)
        steps, before = engine.steps, engine.loop.scheduler.stats.forced_tokens
        jumping = engine.generate(PROMPT, params, seed=seed, constraint=constraint)
        jumped = engine.loop.scheduler.stats.forced_tokens - before
        fewer, steps = engine.steps - steps, engine.steps
        walking = engine.generate(PROMPT, params.with_changes(logprobs=1), seed=seed, constraint=constraint)
        assert (jumping.tokens, jumping.finish_reason) == (walking.tokens, walking.finish_reason)
        assert [entry.token_id for entry in walking.logprobs] == walking.tokens
        assert engine.loop.scheduler.stats.forced_tokens - before == jumped
        if constraint == PERSON:
            assert jumped > 8
            assert engine.steps - steps > fewer


@pytest.mark.longer
def test_preemption_chunks_and_prefix_hits_change_nothing(engine: Harness) -> None:
    """A pool too small for all, so that sequences lose their pages in the middle of a text."""
    tight = build_demo(num_pages=13)
    prompts = [PROMPT[:18], PROMPT[:18], PROMPT[:2], PROMPT[:3]]
    wanted = []
    for i, prompt in enumerate(prompts):
        for constraint in (PERSON, CHOICE):
            wanted.append(engine.generate(prompt, SAMPLED, seed=i, constraint=constraint))
    tight.chunk_by(5)
    for seed in range(2):  # they come first and grow to six pages each, so that the others give way
        tight.submit(PROMPT[:4], GREEDY.with_changes(max_tokens=90), seed=seed)
    names = [
        tight.submit(prompt, SAMPLED, seed=i, constraint=constraint)
        for i, prompt in enumerate(prompts)
        for constraint in (PERSON, CHOICE)
    ]
    tight.run()
    stats = tight.loop.scheduler.stats
    assert stats.preemptions > 0
    assert stats.prefix_hits > 0
    assert stats.forced_tokens > 0
    for name, alone in zip(names, wanted, strict=True):
        assert (heard(tight, name).tokens, heard(tight, name).finish_reason) == (alone.tokens, alone.finish_reason)


def test_max_tokens_ends_within_what_is_forced(engine: Harness) -> None:
    whole = engine.generate(PROMPT, SAMPLED, seed=1, constraint=PERSON)
    for most in range(1, 20):
        cut = engine.generate(PROMPT, SAMPLED.with_changes(max_tokens=most), seed=1, constraint=PERSON)
        assert (cut.tokens, cut.finish_reason) == (whole.tokens[:most], "length")


def test_a_stop_token_ends_within_what_is_forced(engine: Harness) -> None:
    whole = engine.generate(PROMPT, SAMPLED, seed=1, constraint=PERSON)
    for token in whole.tokens[1:8]:
        cut = engine.generate(PROMPT, SAMPLED.with_changes(stop_token_ids=(token,)), seed=1, constraint=PERSON)
        assert (cut.tokens, cut.finish_reason) == (whole.tokens[: whole.tokens.index(token) + 1], "stop")


def test_an_end_is_allowed_exactly_where_the_grammar_may_end(engine: Harness) -> None:
    for seed in range(6):
        answer = engine.generate(PROMPT, SAMPLED.with_changes(max_tokens=12), seed=seed, constraint=OPEN)
        assert answer.tokens[0] not in engine.loop.info.eos_token_ids
        if answer.finish_reason == "stop":
            assert answer.tokens[-1] in engine.loop.info.eos_token_ids
    never = engine.generate(PROMPT, SAMPLED.with_changes(max_tokens=30, min_tokens=30), seed=0, constraint=OPEN)
    assert (len(never.tokens), never.finish_reason) == (30, "length")


def test_a_grammar_that_cannot_be_met_ends_its_request_alone(engine: Harness) -> None:
    letters = TOKENIZER.encode("abc", add_special_tokens=False)
    impossible = engine.submit(PROMPT, SAMPLED.with_changes(allowed_token_ids=letters), seed=0, constraint=CODE)
    other = engine.submit(PROMPT, SAMPLED, seed=0, constraint=CODE)
    engine.run()
    failed = heard(engine, impossible)
    assert failed.finish_reason == "error"
    assert "structured output" in failed.message
    check(engine, other, CODE)


def test_a_mask_over_its_limit_ends_its_request_alone(engine: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxinfer.constraints import matching

    monkeypatch.setitem(matching.LIMITS, "step_max_items", 200)
    branching = grammar(lark_grammar="start: a\na: /x/ a | a /x/ | /x/ a /x/ | a a | /x/")  # ever more ways to read it
    bad = engine.submit(PROMPT, SAMPLED.with_changes(min_tokens=90, n=2), seed=0, constraint=branching)
    monkeypatch.undo()
    other, plain = engine.submit(PROMPT, SAMPLED, seed=0, constraint=CODE), engine.submit(PROMPT, SAMPLED, seed=0)
    engine.run()
    assert not engine.refused, "it compiles, and its first mask is cheap"
    for index in range(2):
        assert heard(engine, bad, index).finish_reason == "error"
        assert "cannot be followed further" in heard(engine, bad, index).message
    check(engine, other, CODE)
    assert heard(engine, plain).tokens == engine.generate(PROMPT, SAMPLED, seed=0).tokens


# -- the loop ---------------------------------------------------------------------------------------------------------


def submit(name: str, constraint: str, **changes: Any) -> Submit:
    params = SAMPLED.with_changes(**changes)
    return Submit(name, tuple(PROMPT), params, 3, 0, time.monotonic(), constraint=constraint)


def serve(engine: Harness, messages: Sequence[Any]) -> list[Any]:
    """Runs the loop in a thread on these messages and a `Drain`, until it says that it is done."""
    inbox: queue.Queue[Any] = queue.Queue()
    for message in messages:
        inbox.put(message)
    inbox.put(Drain())
    said: list[Any] = []
    thread = threading.Thread(target=engine.loop.run, args=(inbox, said.append))
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    return said


def slowly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    compile_it = Matching._compile

    def slow(self: Matching, text: str, job: Any) -> None:
        time.sleep(seconds)
        compile_it(self, text, job)

    monkeypatch.setattr(Matching, "_compile", slow)


def test_a_drain_waits_for_grammars_and_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = build_demo()
    slowly(monkeypatch, 0.5)
    broken = grammar(lark_grammar="start: /[ab/")
    messages = [
        submit("slow", CODE),
        submit("plain", "", max_tokens=5),
        submit("twice", PERSON),
        submit("twice", ""),
        submit("broken", broken),
        submit("gone", CODE, n=2),
        Abort("gone"),
    ]
    said = serve(engine, messages)
    assert isinstance(said[-1], Drained)
    refused = {(m.request_id, m.kind) for m in said if isinstance(m, Rejected)}
    assert refused == {("twice", "duplicate"), ("broken", "invalid")}
    ends = [
        (o.request_id, o.finish_reason)
        for m in said
        if isinstance(m, StepOutputs)
        for o in m.sequences
        if o.finish_reason
    ]
    assert ends[:2] == [("gone", "abort")] * 2
    assert ends.index(("plain", "length")) < min(i for i, (name, _) in enumerate(ends) if name in ("slow", "twice"))
    assert {name for name, _ in ends} == {"gone", "plain", "slow", "twice"}
    stats = next(m for m in reversed(said) if isinstance(m, StepOutputs)).stats
    assert stats.constrained_requests == 4
    assert stats.constraint_seconds > 0


def test_an_engine_without_grammars_refuses_them(engine: Harness) -> None:
    loop, matching = engine.loop, engine.loop._matching
    said: list[Any] = []
    loop._matching = None
    try:
        loop._handle(submit("r", CODE), said.append)
    finally:
        loop._matching = matching
    assert said == [Rejected("r", "invalid", "this engine has no structured output")]


@pytest.mark.longer
def test_several_devices_draw_the_same() -> None:
    one, two = build_demo(), build_demo(tensor_parallel_size=2)
    for constraint in CHECKS:
        params = replace(SAMPLED, temperature=0)
        name = two.submit(PROMPT, params, seed=1, constraint=constraint)
        two.run()
        check(two, name, constraint)
        assert heard(two, name).tokens == one.generate(PROMPT, params, seed=1, constraint=constraint).tokens
