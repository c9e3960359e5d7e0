"""A format is known by what its template writes as a whole, or not at all."""

from __future__ import annotations

import pytest

from jaxinfer.text.answers import OutputParserNames, check_parser_names, output_parser_names
from tests.jaxinfer.text.answers import templates

KNOWN = {
    "HERMES": "hermes",
    "QWEN3": "hermes",
    "LISTED": "hermes",
    "SMOLLM3": "hermes",
    "HERMES2": "hermes",
    "PHI4": "granite",
    "GRANITE": "granite",
    "LLAMA3": "llama3",
    "MISTRAL": "mistral",
    "MISTRAL_NAMED": "mistral",
    "XML": "qwen3_xml",
    "ARG_KEYS": "glm45",
    "ARG_KEYS_CLOSE": "glm45",
    "DEEPSEEK": "deepseek_v3",
    "DEEPSEEK_V31": "deepseek_v31",
    "DEEPSEEK_V32": "deepseek_v32",
    "DEEPSEEK_V4": "deepseek_v4",
    "DEEPSEEK_V41": "deepseek_v41",
    "NEMOTRON": "nemotron",
    "FUNCTOOLS": "phi4_mini",
    "GEMMA4": "gemma4",
    "KIMI": "kimi_k2",
    "MINIMAX": "minimax_m2",
    "SEED": "seed_oss",
    "HARMONY": "harmony",
    "HARMONY_NARROW": "harmony",
}
UNKNOWN = [
    *("YAML", "OTHER_KEYS", "PYTHONIC", "FUNCTIONARY", "COMMAND_R", "LLAMA4", "NO_TOOLS"),
]


@pytest.mark.parametrize("name", KNOWN)
def test_formats_are_known_by_the_calls_that_templates_write(name: str) -> None:
    assert output_parser_names("auto", "none", getattr(templates, name)).tool_calls == KNOWN[name]


@pytest.mark.parametrize("name", UNKNOWN)
def test_other_formats_with_the_same_tags_are_not(name: str) -> None:
    assert output_parser_names("auto", "none", getattr(templates, name)).tool_calls == "none"


@pytest.mark.parametrize(
    ("name", "opening"),
    [
        *(
            ("HERMES", '<tool_call>\n{"name": "'),
            ("LISTED", '<tool_call>[{"name": "'),
            ("XML", "<tool_call>\n<function="),
        ),
        *(("ARG_KEYS", "<tool_call>"), ("PHI4", '<|tool_call|>[{"name": "'), ("GRANITE", '<|tool_call|>[{"name": "')),
        *(("MISTRAL", '[TOOL_CALLS][{"name": "'), ("MISTRAL_NAMED", "[TOOL_CALLS]"), ("GEMMA4", "<|tool_call>call:")),
    ],
)
def test_the_spelling_is_the_one_that_the_template_shows(name: str, opening: str) -> None:
    spelling = output_parser_names("auto", "none", getattr(templates, name)).spelling
    assert spelling is not None
    assert spelling.opening + spelling.before_name == opening


def test_line_breaks_between_tags_are_of_the_spelling() -> None:
    loose, close = (
        output_parser_names("glm47", "none", template).spelling
        for template in (templates.ARG_KEYS, templates.ARG_KEYS_CLOSE)
    )
    assert loose is not None
    assert close is not None
    assert (loose.before_arguments, close.before_arguments) == ("\n", "")


def test_every_template_is_judged() -> None:
    names = {name for name in vars(templates) if name.isupper() and not name.startswith("_")} - {"GOLDENS"}
    assert names == {*KNOWN, *UNKNOWN, "PHI4_MINI"}


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{{ messages }}",
        "<tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        '"parameters" <|start_header_id|>',
        "{% x %}",
    ],
)
def test_a_tag_alone_says_nothing(template: str | None) -> None:
    assert output_parser_names("auto", "auto", template) == OutputParserNames()


def test_the_template_for_tools_is_the_one_that_is_judged() -> None:
    assert output_parser_names("auto", "auto", {"default": "x", "tool_use": templates.MISTRAL}).tool_calls == "mistral"
    assert output_parser_names("auto", "auto", {"default": templates.HERMES, "rag": "x"}).tool_calls == "hermes"
    assert (
        output_parser_names("auto", "auto", {"tool_use": templates.YAML, "default": templates.HERMES}).tool_calls
        == "none"
    )
    assert output_parser_names("auto", "auto", {"rag": templates.HERMES}).tool_calls == "none"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("<think> </think>", OutputParserNames("none", "think")),
        ("content.split('</think>')", OutputParserNames("none", "think", unopened=True)),
        ("<|channel>thought <channel|>", OutputParserNames("none", "gemma4")),
        ("<think></think> <response>{{ result }}</response>", OutputParserNames("none", "think")),
        ("[THINK] [/THINK]", OutputParserNames("none", "mistral")),
        ("'<|start|>assistant<|channel|>analysis<|message|>'", OutputParserNames("none", "harmony")),
        ("'<|channel|>' + channel for channel in ['analysis', 'final']", OutputParserNames("none", "harmony")),
        ("<|channel|>", OutputParserNames()),
        (
            "Write your thoughts after 'Here is my thought process:' and 'Here is my response:'",
            OutputParserNames("none", "granite"),
        ),
        (
            "between <think></think> and your response between <response></response>",
            OutputParserNames("none", "granite"),
        ),
    ],
)
def test_reasoning_is_known_by_its_tags(source: str, expected: OutputParserNames) -> None:
    assert output_parser_names("auto", "auto", source) == expected


def test_a_format_that_is_given_wins() -> None:
    assert output_parser_names("none", "none", templates.QWEN3) == OutputParserNames()
    assert output_parser_names("mistral", "think", None) == OutputParserNames("mistral", "think")
    assert output_parser_names("qwen3_coder", "deepseek_r1", None) == OutputParserNames("qwen3_xml", "think")
    assert output_parser_names("llama3_json", "qwen3", None) == OutputParserNames("llama3", "think")
    with pytest.raises(
        ValueError, match="tool_calls is 'xml'; it must be one of none, hermes, llama3, mistral, granite, qwen3_xml, "
    ):
        output_parser_names("xml", "auto", None)


def test_harmony_is_one_format_for_both() -> None:
    harmony = OutputParserNames("harmony", "harmony")
    for tool_calls, reasoning in (("auto", "auto"), ("openai", "openai_gptoss"), ("harmony", "harmony")):
        assert output_parser_names(tool_calls, reasoning, templates.HARMONY_NARROW) == harmony
    for tool_calls, reasoning in (("openai", "auto"), ("auto", "openai_gptoss")):
        assert output_parser_names(tool_calls, reasoning, templates.QWEN3) == harmony
    assert output_parser_names("none", "auto", templates.HARMONY) == OutputParserNames("none", "harmony")
    assert output_parser_names("auto", "none", templates.HARMONY) == OutputParserNames("harmony", "none")
    # What is given wins over what the template shows.
    assert output_parser_names("auto", "think", templates.HARMONY) == OutputParserNames("none", "think")
    assert output_parser_names("hermes", "auto", templates.HARMONY) == OutputParserNames("hermes", "none")
    for tool_calls, reasoning in (("hermes", "harmony"), ("openai", "think")):
        with pytest.raises(ValueError, match="the other must be harmony, none or auto"):
            check_parser_names(tool_calls, reasoning)
