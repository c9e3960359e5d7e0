"""Grammars compiled in threads, followed token by token, and made into masks."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from jaxinfer.constraints import matching as module
from jaxinfer.constraints.guide import Guide
from jaxinfer.constraints.matching import ConstraintError, Matching
from jaxinfer.constraints.vocabulary import ComingVocabulary, Vocabulary
from jaxinfer.messages import Submit
from jaxinfer.model_path import demo_path
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.text import load_tokenizer

pytest.importorskip("llguidance")

TOKENIZER = load_tokenizer(demo_path())
VOCAB, WORDS, END = 4096, 128, 2


def lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


CODE = lark("start: /[A-Z]{2,4}-[0-9]+/")
KEYS = json.dumps(
    {
        "grammars": [
            {
                "json_schema": {
                    "type": "object",
                    "properties": {"first_name": {"enum": ["Ann", "Bob"]}, "the_age_in_years": {"type": "integer"}},
                    "required": ["first_name", "the_age_in_years"],
                    "additionalProperties": False,
                    "x-guidance": {"whitespace_flexible": False},
                }
            }
        ]
    }
)
BROKEN = lark("start: /[ab/")
BRANCHING = lark("start: a\na: /x/ a | a /x/ | /x/ a /x/ | a a | /x/")  # more and more ways to have read the same


@pytest.fixture(scope="module")
def vocabulary() -> ComingVocabulary:
    return ComingVocabulary(lambda: Vocabulary(TOKENIZER, VOCAB, [END, 7]))


@pytest.fixture
def matching(vocabulary: ComingVocabulary) -> Any:
    found = Matching(vocabulary, threads=2)
    yield found
    found.close()


def submit(constraint: str, name: str = "r", n: int = 1) -> Submit:
    return Submit(name, (5, 6), SamplingParams(n=n), 0, 0, 0.0, constraint=constraint)


def settle(matching: Matching, count: int = 1) -> list[tuple[Submit, list[Guide] | ConstraintError]]:
    found: list[tuple[Submit, list[Guide] | ConstraintError]] = []
    begin = time.monotonic()
    while len(found) < count and time.monotonic() < begin + 30:
        found += matching.take()
        time.sleep(0.001)
    return found


def guides_of(matching: Matching, constraint: str, n: int = 1) -> list[Guide]:
    at_once = matching.begin(submit(constraint, n=n))
    found = settle(matching)[0][1] if at_once is None else at_once
    assert isinstance(found, list), found
    return found


def allowed(mask: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def walk(matching: Matching, guide: Guide, choose: Callable[[list[int]], int], most: int = 60) -> list[int]:
    """Tokens of a random text, up to its end."""
    tokens: list[int] = []
    while len(tokens) < most:
        masks = matching.masks([(1, guide)], 3, WORDS)
        assert not guide.error, guide.error
        assert (masks[[0, 2]] == 0xFFFFFFFF).all(), "other rows may have any token"
        token = choose(allowed(masks[1]))
        guide.accept(token)
        if token in (END, 7):
            assert guide.complete
            return tokens
        tokens.append(token)
        if guide.complete:
            return tokens
    raise AssertionError(f"no end: {TOKENIZER.decode(tokens)}")


def test_every_walk_ends_in_a_text_of_the_grammar(matching: Matching) -> None:
    rng = np.random.default_rng(0)
    for guide in guides_of(matching, CODE, n=20):
        text = TOKENIZER.decode(walk(matching, guide, lambda ids: int(rng.choice(ids))))
        assert re.fullmatch("[A-Z]{2,4}-[0-9]+", text)
    for guide in guides_of(matching, KEYS, n=20):
        text = TOKENIZER.decode(walk(matching, guide, lambda ids: int(rng.choice(ids))))
        assert json.loads(text).keys() == {"first_name", "the_age_in_years"}


def test_forced_tokens_are_known_and_are_the_masks_of_one(matching: Matching) -> None:
    jumping, walking = guides_of(matching, KEYS, n=2)
    matching.masks([(0, jumping)], 1, WORDS)
    forced = list(jumping.forced)
    assert len(forced) >= 3
    for token in forced:  # one by one, without asking for more than the mask
        mask = matching.masks([(0, walking)], 1, WORDS)
        assert allowed(mask[0]) == [token]
        walking.accept(token)
        jumping.accept(token)
    assert not jumping.forced
    assert not walking.forced
    assert (matching.masks([(0, jumping)], 1, WORDS) == matching.masks([(0, walking)], 1, WORDS)).all()


def test_a_token_outside_is_an_error_of_its_guide_alone(matching: Matching) -> None:
    bad, good = guides_of(matching, CODE, n=2)
    bad.accept(TOKENIZER.encode("a", add_special_tokens=False)[0])
    assert "cannot be followed" in bad.error
    masks = matching.masks([(0, bad), (1, good)], 2, WORDS)
    assert (masks[0] == 0xFFFFFFFF).all()
    assert not good.error
    assert 0 < len(allowed(masks[1])) < VOCAB


def test_a_mask_that_costs_too_much_is_an_error(matching: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.LIMITS, "step_max_items", 200)
    (guide,), (other,) = guides_of(matching, BRANCHING), guides_of(matching, CODE)
    x = TOKENIZER.encode("x", add_special_tokens=False)[0]
    for _ in range(200):
        masks = matching.masks([(0, guide), (1, other)], 2, WORDS)
        if guide.error:
            break
        guide.accept(x)
        if guide.error:
            break
    assert guide.error
    assert not other.error
    assert len(allowed(masks[1])) < VOCAB


def test_what_does_not_compile_says_why(matching: Matching) -> None:
    assert matching.begin(submit(BROKEN)) is None
    ((_, error),) = settle(matching)
    assert isinstance(error, ConstraintError)
    assert "unclosed character class" in str(error)
    assert not matching.waiting


def test_a_grammar_is_compiled_once(matching: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    compile_it = Matching._compile
    monkeypatch.setattr(
        Matching, "_compile", lambda self, text, job: (compiled.append(text), compile_it(self, text, job))[1]
    )
    assert matching.begin(submit(CODE, "a")) is None
    assert matching.begin(submit(CODE, "b", n=3)) is None
    assert matching.waiting == 2
    assert matching.holds("b")
    found = {request.request_id: guides for request, guides in settle(matching, 2)}
    assert [len(found[name]) for name in "ab"] == [1, 3]
    assert len(matching.begin(submit(CODE, "c")) or ()) == 1, "it is there at once"
    assert compiled == [CODE]
    assert matching.compile_seconds > 0
    assert matching.requests == 3


def test_many_sequences_share_several_matchers_and_none_serves_for_ever(
    matching: Matching, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_COPIES", 12)
    guides_of(matching, CODE, n=8)
    compiled = matching._cache[CODE]
    assert compiled.job is not None, "two threads make masks, so that two locks serve them"
    compiled.job.future.result(30)
    assert matching.begin(submit(CODE, "b")) is not None
    assert len(compiled.originals) == 2
    assert matching.begin(submit(CODE, "c", n=4)) is not None
    assert matching.begin(submit(CODE, "d")) is None, "it is compiled anew"
    assert len(settle(matching)) == 1
    assert matching._cache[CODE] is not compiled


def test_what_had_an_error_is_compiled_anew(matching: Matching) -> None:
    (guide,) = guides_of(matching, CODE)
    compiled = matching._cache[CODE]
    assert matching.begin(submit(CODE, "b")) is not None
    guide.accept(TOKENIZER.encode("a", add_special_tokens=False)[0])
    assert matching.begin(submit(CODE, "c")) is None
    assert len(settle(matching)) == 1
    assert matching._cache[CODE] is not compiled


def test_the_cache_is_bounded(matching: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT", 2)
    for letter in "abca":
        guides_of(matching, lark(f"start: /{letter}+/"))
    assert list(matching._cache) == [lark("start: /c+/"), lark("start: /a+/")]


def test_the_cache_is_bounded_by_the_work_it_took(matching: Matching, monkeypatch: pytest.MonkeyPatch) -> None:
    """A grammar of few characters may take tens of MB, and masks add to it."""
    guides_of(matching, CODE)
    monkeypatch.setattr(module, "_KEPT_SECONDS", 0.1)
    matching._cache[CODE].seconds = 0.2
    guides_of(matching, KEYS)
    assert list(matching._cache) == [KEYS]
    monkeypatch.setattr(module, "_MOST_MASK_SECONDS", 0.0)
    for guide in guides_of(matching, KEYS):
        matching.masks([(0, guide)], 1, WORDS)
    assert matching._cache[KEYS].worn
    matching._cache[KEYS].worked(0.2)
    guides_of(matching, CODE)
    assert list(matching._cache) == [CODE]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # Three thousand things each of which may be left out, behind a beginning that hides them from the first mask.
        (
            'start: "ab" ' + " ".join(f"r{i}?" for i in range(3000)) + "\n"
            + "".join(f'r{i}: "a" | "ab" | r{i * 7 % 3000}\n' for i in range(3000)),
            "next takes more than 0.02 s",
        ),
        ('start: a\na: "x" a\n', "Too many items"),  # it never ends, and leaves no choice
        ("start: /(([a-z]{1,100}){1,100}){1,100}/\n", "too many expressions"),
        ("start: /[^\\s\\S]/\n", "there is no text that it allows"),
    ],
)  # fmt: skip
def test_grammars_that_could_not_be_followed_are_refused(
    text: str, error: str, matching: Matching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before they hold up the requests of others."""
    monkeypatch.setattr(module, "MASK_SECONDS", 0.02 if "takes" in error else 10.0)
    matching.begin(submit(lark(text)))
    ((_, found),) = settle(matching)
    assert isinstance(found, ConstraintError)
    assert error in str(found)


def test_nobody_waits_for_ever(vocabulary: ComingVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMPILE_SECONDS", 0.01)
    matching = Matching(vocabulary)
    monkeypatch.setattr(Matching, "_compile", lambda self, text, job: setattr(job, "began", time.monotonic()))
    assert matching.begin(submit(CODE)) is None
    ((_, error),) = settle(matching)
    assert str(error) == "the grammar was not compiled within 0.01 seconds"


def test_a_released_request_is_not_given_back(matching: Matching) -> None:
    matching.begin(submit(CODE, "gone"))
    matching.begin(submit(CODE, "kept"))
    assert matching.release("gone") is not None
    assert matching.release("gone") is None
    assert [request.request_id for request, _ in settle(matching)] == ["kept"]


def test_a_model_without_a_tokenizer() -> None:
    matching = Matching(ComingVocabulary(lambda: None))
    matching.begin(submit(CODE))
    ((_, error),) = settle(matching)
    assert "needs a tokenizer" in str(error)


def test_a_grammar_comes_in_the_first_turn_of_those_who_wait_for_it(
    vocabulary: ComingVocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tenant has sent many, and at last what another one wants too."""
    gate, done = threading.Event(), list[str]()
    compile_it = Matching._compile

    def held(self: Matching, text: str, job: Any) -> None:
        gate.wait(30)
        done.append(text)
        compile_it(self, text, job)

    monkeypatch.setattr(Matching, "_compile", held)
    matching = Matching(vocabulary)
    texts = [lark(f"start: /[A-Z]{{2,4}}-{i}/") for i in range(12)]
    for text in (*texts, CODE):
        assert matching.begin(submit(text, text)._replace(tenant="greedy")) is None
    assert matching.begin(submit(CODE, "other")._replace(tenant="other")) is None
    gate.set()
    assert {found[0].request_id for found in settle(matching, 14)} == {*texts, CODE, "other"}
    assert sorted(done) == sorted([*texts, CODE]), "each of them once"
    assert done.index(CODE) < 6
    matching.close()
