"""Item files: what they may say, and errors that name the line and the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jaxinfer.evaluation.items import ItemsError, read_items

GOOD = {"prompt": "2 + 2?", "answer": "4"}


def write(tmp_path: Path, *lines: Any) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_reads_every_form(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "France?"}]
    path = write(
        tmp_path,
        {"prompt": "2 + 2?", "answer": 4, "match": "number", "kind": "sums", "max_tokens": 8},
        "",
        {"kind": "capitals", "messages": chat, "answer": "Paris."},
        {"kind": "sums", "prompt": "2000 / 2?", "answer": "1,000.0", "match": "number"},
        {"kind": "json", "prompt": "JSON", "answer": {"b": 1, "a": "x"}, "match": "json", "depth": 700},
        {"kind": "words", "prompt": "sort", "answer": "a, b", "match": "words"},
        {"prompt": "say it", "answer": " as: it is ", "match": "exact"},
    )
    tasks = read_items(path)
    assert list(tasks) == ["sums", "capitals", "json", "words", "items"]
    assert [item.answer for item in tasks["sums"].items] == ["4", "1000"]
    assert tasks["sums"].items[0].max_tokens == 8
    assert tasks["capitals"].items[0].messages == tuple(chat)
    assert tasks["capitals"].items[0].answer == "Paris"
    assert (tasks["json"].items[0].answer, tasks["json"].items[0].depth) == ('{"a":"x","b":1}', 700)
    rights = {name: task.kind.is_right for name, task in tasks.items()}
    assert rights["sums"](tasks["sums"].items[1], "so 1000")
    assert not rights["sums"](tasks["sums"].items[1], "so 1001")
    assert rights["capitals"](tasks["capitals"].items[0], "The capital: Paris")
    assert rights["json"](tasks["json"].items[0], 'here {"a": "x", "b": 1}')
    assert rights["words"](tasks["words"].items[0], "Sorted: a b.")
    assert rights["items"](tasks["items"].items[0], "as: it is\n")
    assert not rights["items"](tasks["items"].items[0], "it is")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: list instead of a JSON object"),
        ({**GOOD, "anwser": "4"}, "line 2: unknown field 'anwser'; fields are kind, prompt"),
        ({"prompt": "x"}, "line 2: the field answer is missing"),
        ({"answer": "x"}, "line 2: exactly one of the fields prompt and messages"),
        ({**GOOD, "messages": []}, "line 2: exactly one of the fields prompt and messages"),
        ({**GOOD, "prompt": " "}, "line 2: prompt is ' '; it must be a text that is not blank"),
        ({**GOOD, "answer": 4}, "line 2: answer is 4; it must be a text"),
        ({**GOOD, "answer": "four", "match": "number", "kind": "n"}, "line 2: answer is 'four'; with match 'number'"),
        ({**GOOD, "match": "regex"}, "line 2: match is 'regex'; it must be one of text, number, words, json, exact"),
        ({**GOOD, "match": "number"}, "line 2: match is 'number'; earlier lines of kind 'items' have 'text'"),
        ({**GOOD, "max_tokens": 0}, "line 2: max_tokens is 0; it must be an integer of 1 or more"),
        ({**GOOD, "depth": True}, "line 2: depth is True; it must be an integer of 0 or more"),
        ({**GOOD, "kind": 3}, "line 2: kind is 3; it must be a text"),
        ({"messages": [], "answer": "x"}, "line 2: messages is []; it must be a list of objects"),
        ({"messages": [{"role": "user"}], "answer": "x"}, "line 2: messages[0] is {'role': 'user'}"),
        ({"messages": [{"role": "bot", "content": "x"}], "answer": "x"}, "line 2: messages[0].role is 'bot'"),
        ({"messages": [{"role": "assistant", "content": "x"}], "answer": "x"}, "the last must be the user's"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(ItemsError) as caught:
        read_items(write(tmp_path, GOOD, line))
    assert message in str(caught.value)
    assert "items.jsonl" in str(caught.value)


def test_an_empty_or_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ItemsError, match=r"items\.jsonl holds no items"):
        read_items(write(tmp_path, "", "  "))
    with pytest.raises(ItemsError, match="cannot be read"):
        read_items(tmp_path / "absent.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    with pytest.raises(ItemsError, match="cannot be read"):
        read_items(tmp_path / "latin.jsonl")
