"""The answer inside a response."""

from __future__ import annotations

import pytest

from jaxinfer.evaluation.extract import canonical_number, first_json, last_line, last_line_words, last_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("12 + 30 = 42.", "42"),
        ("7+5=12, 4+8+1=13. 47 + 85 = 132.", "132"),
        ("It is 007", "7"),
        ("1,234,567.50 metres", "1234567.5"),
        ("the list 1,2,3", "3"),
        ("1,2345", "2345"),
        ("it is -3", "-3"),
        ("it is −3", "-3"),
        ("8 - 5", "5"),
        ("8-5", "5"),
        ("(-7)", "-7"),
        ("x=-7", "-7"),
        ("-0", "0"),
        ("3.0", "3"),
        ("答案是42。", "42"),
        ("$5 or 12kg", "12"),
        ("none at all", None),
        ("", None),
        ("٣", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


def test_canonical_number_refuses_other_things() -> None:
    with pytest.raises(ValueError, match="1e3"):
        canonical_number("1e3")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Sorted: apple, bear, Cat.", "apple bear Cat"),
        ('I think:\n"pear"  "fig"\n\n', "pear fig"),
        ("答案：苹果、香蕉。", "苹果 香蕉"),
        ("a: b: c d", "c d"),
        ("Words:", "Words"),
        ("well-known, don't", "well-known don't"),
        (" \n ", None),
        ("...", None),
    ],
)
def test_last_line_words(text: str, words: str | None) -> None:
    assert last_line_words(text) == words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("thinking\nAnswer: 'Mia Stone'.\n", "Mia Stone"),
        ("Mia.", "Mia"),
        ("time: 12:30", "12:30"),
        ("答案：「小明」。", "小明"),
        ("a, b", "a, b"),
        ("", None),
    ],
)
def test_last_line(text: str, line: str | None) -> None:
    assert last_line(text) == line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('Sure: {"b": 1, "a": [1, 2]} done {"c": 3}', '{"a":[1,2],"b":1}'),
        ('{ broken {"a": "你好"}', '{"a":"你好"}'),
        ('{"a": NaN} then {"b": 2}', '{"b":2}'),
        ('{"a": {"b": 1}', '{"b":1}'),
        ("[1, 2]", None),
        ("{" * 100_000, None),
        ('{"a": ' * 5_000, None),
        ("", None),
    ],
)
def test_first_json(text: str, found: str | None) -> None:
    assert first_json(text) == found
