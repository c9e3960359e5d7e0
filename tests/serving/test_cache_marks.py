"""Where marks are in the text that a chat template makes: never behind what was marked, whatever the template does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jaxinfer.text import Tokenizer
from serving.cache_marks import MARK, marked_places, without_marks
from tests.serving.harness import tokenizer

TEMPLATES = Path(__file__).resolve().parents[1] / "goldens_text/templates"
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"{name}-does", "parameters": {"type": "object"}}}
    for name in ("one", "two")
]
CALL = {"id": "c", "type": "function", "function": {"name": "one", "arguments": {"a": "given"}}}
MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "SYS-A"}, {"type": "text", "text": "SYS-B"}]},
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c", "content": "its result "},
    {"role": "user", "content": [{"type": "text", "text": "part A"}, {"type": "text", "text": "part B"}]},
]


def shown(messages: Any, tools: Any, template: str) -> tuple[str, list[tuple[int, float]]]:
    """The text without marks, and the places."""
    teller = tokenizer()

    def render(messages: Any, tools: Any) -> str:
        return teller.render_chat(messages, tools=tools, template=template)

    text = render(*without_marks(messages, tools))
    return text, marked_places(messages, tools, text, render)


def marked(path: tuple[Any, ...], value: Any = None) -> Any:
    """The value with a mark at the end of the path."""
    value = MESSAGES if value is None else value
    if not path:
        return {**value, MARK: 300.0}
    key, *rest = path
    changed = marked(tuple(rest), value[key])
    return {**value, key: changed} if isinstance(value, dict) else [*value[:key], changed, *value[key + 1 :]]


# (path of the mark, the last words that are in front of it, the first that are behind)
PLACES: list[tuple[tuple[Any, ...], str, str]] = [
    ((0, "content", 0), "SYS-A", "SYS-B"),
    ((0, "content", 1), "SYS-B", "first question"),
    ((2, "tool_calls", 0), "given", "its result"),
    ((3,), "its result", "part A"),
    ((4, "content", 0), "part A", "part B"),
    ((4, "content", 1), "part B", "<the end>"),
]


@pytest.mark.parametrize("name", ["chatml", "thinking", "json_forms", "headers"])
def test_marks_stand_behind_what_is_marked(name: str) -> None:
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    whole, none = shown(MESSAGES, TOOLS, template)
    assert none == []
    for path, front, behind in PLACES:
        if front not in whole:
            continue  # the template does not show it
        text, places = shown(marked(path), TOOLS, template)
        assert text == whole
        ((place, seconds),) = places
        assert seconds == 300.0
        assert front in text[:place], (path, text[:place])
        assert behind not in text[:place], (path, text[:place])


def test_tools_and_the_system_text_belong_together() -> None:
    """The system's last block has the tools with it, wherever the template writes them."""
    for template in (
        "{{ tools | tojson }}|{% for m in messages %}{{ m.content }};{% endfor %}",
        "{% for m in messages %}{{ m.content }};{% if loop.first %}{{ tools | tojson }}{% endif %}{% endfor %}",
    ):
        text, ((place, _),) = shown(marked((0, "content", 1)), TOOLS, template)
        assert text[place:].startswith("first question")


@pytest.mark.parametrize(
    ("shows", "behind_last"),
    [("t | tojson", '"object"'), ("t.function | tojson", '"object"'), ("t.function.name", "tw")],
    ids=["all", "function", "name"],
)
def test_tools(shows: str, behind_last: str) -> None:
    """As far as the template shows of them what is there."""
    template = (
        "{% for t in tools %}[{{ " + shows + " }}]{% endfor %}{% for m in messages %}{{ m.content }};{% endfor %}"
    )
    text, ((place, _),) = shown(MESSAGES, [{**TOOLS[0], MARK: 1.0}, TOOLS[1]], template)
    assert "one" in text[:place]
    assert "two" not in text[:place]
    text, ((place, _),) = shown(MESSAGES, [TOOLS[0], {**TOOLS[1], MARK: 1.0}], template)
    _, first, last = text[:place].split("[")[:3]
    assert first.startswith(text[1:5])
    assert behind_last in last
    assert "SYS" not in text[:place]


def test_a_place_that_is_not_shown_is_none() -> None:
    assert shown(marked((3,)), None, "{{ messages[0].content[0].text }}")[1] == []
    refusing = "{% if messages[3].content != 'its result ' %}{{ raise_exception('no') }}{% endif %}x"
    assert shown(marked((3,)), None, refusing) == ("x", [])


def test_a_template_that_strips_or_counts_makes_it_shorter() -> None:
    """Never longer: what the text has in common with another one is in both."""
    text, ((place, _),) = shown(marked((3,)), None, "{% for m in messages %}{{ m.content | trim }};{% endfor %}")
    assert text[:place].endswith("its result")
    counting = "{{ messages | tojson | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    _, places = shown(marked((3,)), None, counting)
    assert all(place < 4 for place, _ in places)


def test_places_become_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many tokens as are wholly in front of the place, for every place of a text with long and short tokens."""
    teller: Tokenizer = tokenizer()
    for text in ("<user>hi;", "ünï😀 x", "a" * 40):
        ids, ends = teller.encode_with_places(text, range(len(text) + 1))
        assert ids == teller.encode(text, add_special_tokens=False)
        wanted = [len(text[:place].encode()) for place in range(len(text) + 1)]
        assert ends == wanted
