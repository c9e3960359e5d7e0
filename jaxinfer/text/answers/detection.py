"""Which format a model writes, judged by its chat template.

A tag alone says little: <tool_call> stands before JSON (Hermes, Qwen), before <function=...> (Qwen3-Coder), before a
name and <arg_key> (GLM), before a list (Granite). So the template renders a conversation with a call in it, and the
format is the one whose parser reads that very call; which of its spellings shows there too. Templates that render no
calls are judged by what they tell the model to write. Where neither says, the format is not known.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from typing import Any

from jaxinfer.errors import ChatTemplateError
from jaxinfer.text.answers.events import collect
from jaxinfer.text.answers.formats import (
    CALL_SPELLINGS,
    HARMONY,
    REASONING_ALIASES,
    REASONING_FORMATS,
    REASONING_NAMES,
    TOOL_CALL_ALIASES,
    TOOL_CALL_NAMES,
    OutputParser,
    OutputParserNames,
)
from jaxinfer.text.answers.harmony_header import ANALYSIS, CHANNEL
from jaxinfer.text.answers.spelling import CallSpelling
from jaxinfer.text.chat import ChatTemplates

_NAME, _ARGUMENTS = "look_up_tide", {"harbour": "Brest <3", "days": 2}
_CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": _NAME, "arguments": _ARGUMENTS}}
_PARAMETERS = {
    "type": "object",
    "properties": {
        "harbour": {"type": "string", "description": "Its name"},
        "days": {"type": "integer", "description": "How many"},
    },
}
_TOOL = {
    "type": "function",
    "function": {"name": _NAME, "description": "Tides of a harbour", "parameters": _PARAMETERS},
}
_USER = {"role": "user", "content": "Tides?"}
_ASSISTANT = {"role": "assistant", "content": "", "tool_calls": [_CALL]}
_RESULT = {"role": "tool", "name": _NAME, "tool_call_id": _CALL["id"], "content": "high at 6"}
_SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
_LEFT = re.compile(r"<[^<>]*(?:call|function|invoke)[^<>]*>", re.IGNORECASE)  # tags that no parser has understood
# What a template tells the model to write, as it says it.
_INSTRUCTIONS = (
    ("granite", re.compile(r"<\|tool_call\|>\s*(?:followed by a JSON list|\[)")),
    ("hermes", re.compile(r"<tool_call>\s*\{\s*['\"](?:name|arguments)['\"]\s*:")),
)


def output_parser_names(tool_calls: str, reasoning: str, template: str | dict[str, str] | None) -> OutputParserNames:
    """Settles "auto" by the model's chat template: its source, or name -> source. Raises as `check_parser_names`."""
    tool_calls, reasoning = check_parser_names(tool_calls, reasoning)
    if HARMONY in (tool_calls, reasoning):  # one format for both
        tool_calls, reasoning = (HARMONY if name == "auto" else name for name in (tool_calls, reasoning))
    sources = tuple(template.values()) if isinstance(template, dict) else (template or "",)
    everything = "\n".join(sources)
    given = {tool_calls, reasoning} - {"auto", "none"}
    for_tools = _for_tools(template)
    if tool_calls == "auto":
        tool_calls = _beside(given, _tool_calls(for_tools))
    if reasoning == "auto":
        reasoning = _beside(given, _reasoning(everything))
    form = OutputParserNames(tool_calls, reasoning, variant=_variant(tool_calls, for_tools))
    tags = form.tags
    # Such templates cut the reasoning off in later turns by its end: DeepSeek-R1's models may leave the beginning out.
    unopened = tags is not None and tags.close in everything and not any(tag in everything for tag in tags.opens)
    return form._replace(unopened=unopened)


def check_parser_names(tool_calls: str, reasoning: str) -> tuple[str, str]:
    """The names of the formats, or "auto" or "none".

    Raises ValueError for a name that is no format, and for harmony beside another format: it is one for both.
    """
    tool_calls = TOOL_CALL_ALIASES.get(tool_calls, tool_calls)
    reasoning = REASONING_ALIASES.get(reasoning, reasoning)
    for name, value, known in (
        ("tool_calls", tool_calls, ("none", *TOOL_CALL_NAMES)),
        ("reasoning", reasoning, ("none", *REASONING_NAMES)),
    ):
        if value not in ("auto", *known):
            raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(known)}")
    if HARMONY in (tool_calls, reasoning) and not {tool_calls, reasoning} <= {HARMONY, "none", "auto"}:
        raise ValueError(
            f"tool_calls is {tool_calls!r} and reasoning {reasoning!r}; harmony is one format for both, "
            "so the other must be harmony, none or auto"
        )
    return tool_calls, reasoning


def _beside(given: set[str], found: str) -> str:
    """A format that the template shows, beside another that was given."""
    return "none" if found == HARMONY and given - {HARMONY} else found


def _for_tools(template: str | dict[str, str] | None) -> str:
    if isinstance(template, dict):
        return next((template[name] for name in ("tool_use", "default") if name in template), "")
    return template or ""


def _reasoning(source: str) -> str:
    if CHANNEL in source and ANALYSIS in source:
        return HARMONY
    granite = REASONING_FORMATS["granite"]
    assert granite.answer is not None
    if "".join(granite.answer) in source or any(tag in source for tag in granite.other_closes):
        return "granite"
    return next((name for name, tags in REASONING_FORMATS.items() if tags.close in source), "none")


@lru_cache(maxsize=64)
def _tool_calls(source: str) -> str:
    turn = _turn(source)
    if turn:
        names = [name for name in TOOL_CALL_NAMES if _reads(name, turn)]
        return max(names, key=lambda name: max(_likeness(each, turn) for each in CALL_SPELLINGS[name]), default="none")
    told = _render(source, [_USER], prompt=True) or _render(source, [_USER], prompt=False) or source
    return next((name for name, pattern in _INSTRUCTIONS if pattern.search(told)), "none")


@lru_cache(maxsize=64)
def _turn(source: str) -> str:
    """What the template writes of the probe's call, and around it; "" where it shows none."""
    asked = _render(source, [_USER], prompt=False)
    opened = _render(source, [_USER], prompt=True)
    called = _render(source, [_USER, _ASSISTANT], prompt=False) or _render(
        source, [_USER, _ASSISTANT, _RESULT], prompt=True
    )
    if called is None:
        return ""
    begin = opened if opened and called.startswith(opened) else _common(asked or "", called)
    turn = called[len(begin) :]
    return turn if _NAME in turn else ""


def _variant(tool_calls: str, source: str) -> int:
    """Which of the format's spellings is most like what the template writes; the first where it writes no call."""
    spellings = CALL_SPELLINGS.get(tool_calls, ())
    turn = _turn(source) if len(spellings) > 1 else ""
    return max(range(len(spellings)), key=lambda i: _likeness(spellings[i], turn), default=0)


def _likeness(spelling: CallSpelling, turn: str) -> int:
    """How many characters of the spelling stand in the turn."""
    parts = (
        spelling.opening.strip(),
        spelling.before_name + _NAME + spelling.before_arguments,
        spelling.before_arguments,
        (spelling.after_arguments + spelling.closing).strip(),
    )
    return sum(len(part) for part in parts if part in turn)


def _common(first: str, second: str) -> str:
    """How both begin."""
    differ = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return first[: next(differ, min(len(first), len(second)))]


def _render(source: str, messages: list[dict[str, Any]], *, prompt: bool) -> str | None:
    """None where the template refuses the conversation."""
    try:
        return ChatTemplates(source, "the chat template").render(
            messages,
            add_generation_prompt=prompt,
            tools=[_TOOL],
            template=None,
            variables={},
            special_tokens=_SPECIAL_TOKENS,
            settle=True,
        )
    except ChatTemplateError:
        return None


def _reads(name: str, turn: str) -> bool:
    """Whether the format's parser finds the call that the template has written, and nothing else of the kind."""
    parser = OutputParser(OutputParserNames(name), tools={_NAME: _PARAMETERS}, whole=True)
    answer = collect([*parser.push(turn), *parser.finish()])
    return not _LEFT.search(answer.content) and [(call.name, json.loads(call.arguments)) for call in answer.calls] == [
        (_NAME, _ARGUMENTS)
    ]
