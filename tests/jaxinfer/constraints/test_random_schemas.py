"""Schemas by chance, texts by chance that their grammars let through: all are valid to another reader of the schema."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.params import StructuredOutputsParams
from tests.jaxinfer.constraints.schemas import KINDS, schema
from tests.jaxinfer.constraints.walks import walk

_EACH = 17  # of 18 kinds: 306 schemas
_SAMPLES = 4
_FORMATS = jsonschema.FormatChecker(("ipv4", "ipv6", "email", "uuid", "date"))  # those that both judge alike


def check(kind: str, seed: int, samples: int) -> tuple[int, int]:
    """(texts that ended, texts)"""
    made = schema(random.Random(f"{kind} {seed}"), kind)
    compact = seed % 3 == 0
    params = StructuredOutputsParams(json=made, disable_any_whitespace=compact)
    constraint = constraint_of(params, None, AnswerShape())
    judge = jsonschema.Draft202012Validator(made, format_checker=_FORMATS)
    ended = 0
    for sample in range(samples):
        text = walk(constraint, (kind, seed, sample), longest=1500)
        if text is None:
            continue
        ended += 1
        value = json.loads(text)
        fault = jsonschema.exceptions.best_match(judge.iter_errors(value))
        assert fault is None, (made, text, fault.message)
        if compact:
            assert text == _compact(text)
    return ended, samples


def _compact(text: str) -> str:
    """Without white space between values; strings and numbers as they are written."""
    kept, inside, escaped = [], False, False
    for character in text:
        if inside or not character.isspace():
            kept.append(character)
        if inside and not escaped and character == "\\":
            escaped = True
            continue
        if character == '"' and not escaped:
            inside = not inside
        escaped = False
    return "".join(kept)


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_valid(kind: str) -> None:
    ended, _ = check(kind, 0, 2)
    assert ended


@pytest.mark.longer
@pytest.mark.parametrize("kind", KINDS)
def test_many_texts_are_valid(kind: str) -> None:
    counts: list[tuple[int, int]] = [check(kind, seed, _SAMPLES) for seed in range(1, _EACH + 1)]
    ended, all_texts = (sum(column) for column in zip(*counts, strict=True))
    assert ended >= 0.9 * all_texts


def test_the_judge_can_tell() -> None:
    """Texts of a grammar that was made of another schema do not pass."""
    made: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 5}, "minItems": 1, "maxItems": 3}
    loose = {**made, "items": {"type": "integer"}}
    constraint = constraint_of(StructuredOutputsParams(json=loose), None, AnswerShape())
    texts = [walk(constraint, seed) for seed in range(20)]
    judge = jsonschema.Draft202012Validator(made)
    assert any(text is not None and not judge.is_valid(json.loads(text)) for text in texts)
