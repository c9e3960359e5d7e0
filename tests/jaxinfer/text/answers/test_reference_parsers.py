"""Calls as published chat templates write them, read as vLLM's parsers read them (scripts/make_tool_call_cases.py)."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from jaxinfer.text.answers import OutputParser, OutputParserNames, collect
from jaxinfer.text.answers.formats import CALL_SPELLINGS
from tests.jaxinfer.text.golden_cases import read

TOOLS: dict[str, Any] = read("tool_calls.json")["tools"]
CASES: list[dict[str, Any]] = read("tool_calls.json")["cases"]
BY_SOURCE: dict[str, list[dict[str, Any]]] = {}
for each in CASES:
    BY_SOURCE.setdefault(each["from"] or each["format"], []).append(each)
# No template of these is published: vLLM's own, or a text encoder instead.
WITHOUT_TEMPLATE = {"deepseek_v41", "granite", "phi4_mini"}


OWN_REASONING = {"gemma4": "gemma4", "seed_oss": "seed_oss"}


def answer_of(case: dict[str, Any], *, whole: bool) -> tuple[str, str, list[list[Any]]]:
    reasoning = "none" if not case["reasons"] else OWN_REASONING.get(case["format"], "think")
    parser = OutputParser(OutputParserNames(case["format"], reasoning), tools=TOOLS, whole=whole)
    events = [event for piece in ([case["text"]] if whole else case["text"]) for event in parser.push(piece)]
    answer = collect([*events, *parser.finish()])
    return answer.content.strip(), answer.reasoning, [[call.name, json.loads(call.arguments)] for call in answer.calls]


@pytest.mark.parametrize("source", BY_SOURCE)
@pytest.mark.parametrize("whole", [False, True], ids=["stream", "whole"])
def test_what_vllm_reads(source: str, whole: bool) -> None:
    for case in BY_SOURCE[source]:
        content, reasoning, calls = answer_of(case, whole=whole)
        if "calls" in case:
            assert (content, reasoning, calls) == (case["content"], case["reasoning"], case["calls"]), case["text"]
        if "written" in case:
            assert calls == case["written"], case["text"]


@pytest.mark.parametrize("source", [source for source in BY_SOURCE if BY_SOURCE[source][0]["from"]])
def test_templates_write_what_is_spelled(source: str) -> None:
    """Up to white space and the order of members."""
    for case in BY_SOURCE[source]:
        calls = [(name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in case["written"]]
        if case["format"] == "gemma4":  # its template sorts them
            calls = [
                (name, json.dumps(json.loads(arguments), sort_keys=True, ensure_ascii=False))
                for name, arguments in calls
            ]
        spelled = ["".join(each.spell_all(calls).split()) for each in CALL_SPELLINGS[case["format"]]]
        written = "".join(case["text"].replace("True", "true").replace("False", "false").split())
        written = "".join(_unescaped(written))
        if case["format"] == "kimi_k2":  # which counts calls
            written = re.sub(r":\d+<", ":0<", written)
        assert any("".join(_unescaped(each)) in written for each in spelled), (written, spelled)


def _unescaped(text: str) -> str:
    """JSON's escapes of other letters, and of < and >, which tojson may write."""
    return json.loads(json.dumps(text).replace("\\\\u", "\\u"))


def test_every_format_but_those_without_one_has_a_template() -> None:
    new = {"qwen3_xml", "glm45", "gemma4", "nemotron", "deepseek_v3", "deepseek_v31", "deepseek_v32", "deepseek_v4"}
    new |= {"kimi_k2", "minimax_m2", "seed_oss"}
    assert {case["format"] for case in CASES if case["from"]} == {*new, "hermes"}
    assert {case["format"] for case in CASES} == {*new, "hermes", *WITHOUT_TEMPLATE}
