"""Grammars that would take for ever are ended from outside, and the next one is judged as ever."""

from __future__ import annotations

import json
import threading

import pytest

from jaxinfer.constraints import judge as module
from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.judge import TOO_COSTLY, Judge, one_request
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.errors import InvalidRequest

_PATTERNS = [f".*a.{{{i}}}b" for i in range(1, 30)]  # together they have 2^29 states
_LARK = "X: " + " & ".join(f"/{pattern}/" for pattern in _PATTERNS[:15]) + "\n"


def _lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_SECONDS", 0.1)


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"json": {"allOf": [{"type": "string", "pattern": p} for p in _PATTERNS]}}, "json"),
        ({"grammar": "start: X\n" + _LARK}, "grammar"),
        ({"grammar": 'root ::= "a"' + "\n" * 100_000}, "grammar"),  # GBNF, whose converter takes the square of them
        # it knows neither how many tokens a model has nor how they are spelled, and goes on behind their names
        ({"grammar": "start: <|one|> <two> <[3]> <[123456-123499,7]> X\n" + _LARK}, "grammar"),
    ],
)
def test_expressions_that_must_all_match(asked: dict[str, object], field: str) -> None:
    with one_request(), pytest.raises(InvalidRequest, match="processor time") as raised:
        constraint_of(StructuredOutputsParams(**asked), None, AnswerShape())  # type: ignore[arg-type]
    assert raised.value.field.startswith(f"structured_outputs.{field}")
    constraint_of(StructuredOutputsParams(regex="[a-f]{3}"), None, AnswerShape())


@pytest.mark.usefixtures("short")
def test_a_request_has_one_budget() -> None:
    judge = Judge()
    with one_request():
        assert judge.fault_of(_lark("start: X\n" + _LARK)) == TOO_COSTLY
        assert judge.fault_of(_lark('start: "a"\n')) == TOO_COSTLY
    assert judge.fault_of(_lark('start: "a"\n')) is None
    judge.close()


def test_special_tokens_are_the_engines_matter_and_other_faults_are_told() -> None:
    judge = Judge()
    assert judge.fault_of(_lark("start: <|one|> <[900000]> <two>\n")) is None
    assert "unknown name" in str(judge.fault_of(_lark("start: y\n")))
    judge.close()


def test_a_process_that_was_killed_is_replaced_and_callers_have_one_each() -> None:
    judge = Judge()
    found: list[str | None] = []
    threads = [threading.Thread(target=lambda: found.append(judge.fault_of(_lark('start: "b"\n')))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 6
    for child in judge._idle:
        child.kill()
        child.wait()
    assert judge.fault_of(_lark('start: "c"\n')) is None
    judge.close()
