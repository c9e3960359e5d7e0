"""Budgets of reasoning and words of several tokens, on the model that comes with the project."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.messages import NO_TOKEN_LEFT, ThinkingBudget
from jaxinfer.model_path import demo_path
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import load_tokenizer
from jaxinfer.text.answers import OutputParserNames
from tests.jaxinfer.harness import GREEDY, Harness, build_demo

pytest.importorskip("llguidance")

TOKENIZER = load_tokenizer(demo_path())
PROMPT = TOKENIZER.encode("Who came to the village that morning, and what did they bring?")
CLOSING = tuple(TOKENIZER.encoder_within()("</think>"))
PARAMS = GREEDY.with_changes(max_tokens=40)
REASONED_CODE = constraint_of(
    StructuredOutputsParams(regex="[A-Z]{2,5}-[0-9]{1,4}"),
    None,
    AnswerShape(OutputParserNames(reasoning="think"), "inside", TOKENIZER.token_id),
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Harness]:
    harness = build_demo()
    yield harness
    harness.loop.scheduler.check_idle()


def budget(tokens: int) -> ThinkingBudget:
    return ThinkingBudget(tokens, True, (b"<think>",), (b"</think>",), CLOSING)


def closed(engine: Harness, tokens: int, params: SamplingParams = PARAMS, **more: Any) -> list[int]:
    """What the budget makes of an answer, from answers without one."""
    free = engine.generate(PROMPT, params.with_changes(logprobs=None), **more).tokens[:tokens]
    begun = [*free, *CLOSING]
    rest = engine.generate([*PROMPT, *begun], params.with_changes(max_tokens=(params.max_tokens or 0) - len(begun)))
    return [*begun, *rest.tokens]


@pytest.mark.parametrize("tokens", [0, 1, 7])
@pytest.mark.parametrize("logprobs", [None, 1])
def test_a_budget_closes_the_reasoning_and_the_answer_goes_on(
    engine: Harness, tokens: int, logprobs: int | None
) -> None:
    """Beside an answer without one, which does not notice."""
    params = PARAMS.with_changes(logprobs=logprobs, n=2)
    led = engine.submit(PROMPT, params, thinking=budget(tokens))
    free = engine.submit(PROMPT, PARAMS)
    engine.run()
    wanted = closed(engine, tokens)
    for index in range(2):
        assert engine.heard[led, index].tokens == wanted
        assert len(engine.heard[led, index].logprobs) == (len(wanted) if logprobs else 0)
    assert engine.heard[free, 0].tokens == engine.generate(PROMPT, PARAMS).tokens


def test_behind_its_reasoning_an_answer_waits_for_nothing(engine: Harness) -> None:
    name = engine.submit(PROMPT, PARAMS, thinking=budget(2))
    scheduler = engine.loop.scheduler
    assert scheduler._guided == 1
    while (name, 0) not in engine.heard or len(engine.heard[name, 0].tokens) < 2 + len(CLOSING):
        engine.step()
    assert scheduler._guided == 0
    assert not engine.loop.idle
    engine.run()


def test_a_budget_and_a_form(engine: Harness) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=60)
    names = [
        engine.submit(PROMPT, params, seed=seed, constraint=REASONED_CODE, thinking=budget(seed * 3))
        for seed in range(4)
    ]
    engine.run()
    for seed, name in enumerate(names):
        found = engine.heard[name, 0]
        assert found.finish_reason == "stop", found
        assert tuple(found.tokens[3 * seed : 3 * seed + len(CLOSING)]) == CLOSING
        assert re.fullmatch(r"\s*[A-Z]{2,5}-[0-9]{1,4}", TOKENIZER.decode(found.tokens[3 * seed + len(CLOSING) :]))


def test_a_word_of_several_tokens_is_not_completed(engine: Harness) -> None:
    """Against answers that were drawn token by token, with what would complete a word banned each time."""
    words: list[tuple[int, ...]] = []
    for _ in range(4):  # each time what the answer says now
        said = engine.generate(PROMPT, PARAMS, bad_words=tuple(words)) if words else engine.generate(PROMPT, PARAMS)
        words += [tuple(said.tokens[i : i + 2 + i % 3]) for i in (3, 7, 11)]
    led = engine.submit(PROMPT, PARAMS.with_changes(max_tokens=24), bad_words=tuple(words))
    engine.run()
    found, wanted = engine.heard[led, 0].tokens, list[int]()
    for _ in range(24):
        banned = {word[-1] for word in words if wanted[len(wanted) - len(word) + 1 :] == list(word[:-1])}
        one = PARAMS.with_changes(max_tokens=1, bad_token_ids=tuple(banned))
        wanted += engine.generate([*PROMPT, *wanted], one).tokens
    assert found == wanted
    assert found != engine.generate(PROMPT, PARAMS).tokens[:24]


def test_what_a_grammar_forces_is_no_way_around_a_word(engine: Harness) -> None:
    """Where a word stands in the only text that may follow, nothing may."""
    constraint = constraint_of(StructuredOutputsParams(choice=["the answer is yes and not no"]), None, AnswerShape())
    whole = engine.generate(PROMPT, PARAMS, constraint=constraint)
    assert whole.finish_reason == "stop"
    assert len(whole.tokens) > 5
    found = engine.generate(PROMPT, PARAMS, constraint=constraint, bad_words=(tuple(whole.tokens[2:4]),))
    assert (found.tokens, found.finish_reason, found.message) == (whole.tokens[:3], "error", NO_TOKEN_LEFT)
    others = tuple(token for token in whole.tokens if token != whole.tokens[3])
    for changes in ({"bad_token_ids": (whole.tokens[3],)}, {"allowed_token_ids": others}):
        found = engine.generate(PROMPT, PARAMS.with_changes(**changes), constraint=constraint)
        assert (found.tokens, found.finish_reason, found.message) == (whole.tokens[:3], "error", NO_TOKEN_LEFT)


@pytest.mark.longer
def test_preemption_and_chunks_change_nothing(engine: Harness) -> None:
    free = engine.generate(PROMPT, GREEDY).tokens
    words = tuple(tuple(free[i : i + 2]) for i in range(2, 30, 4))
    asked: list[dict[str, Any]] = [{"thinking": budget(20)}, {"bad_words": words}]
    asked += [{**asked[0], **asked[1]}, {"thinking": budget(3), "constraint": REASONED_CODE}]
    wanted = [engine.generate(PROMPT, GREEDY, **each).tokens for each in asked]
    tight = build_demo(num_pages=13)
    tight.chunk_by(5)
    for seed in range(2):
        tight.submit(PROMPT[:4], GREEDY.with_changes(max_tokens=90), seed=seed)
    names = [tight.submit(PROMPT, GREEDY, **each) for each in asked]
    tight.run()
    assert tight.loop.scheduler.stats.preemptions > 0
    assert [tight.heard[name, 0].tokens for name in names] == wanted
