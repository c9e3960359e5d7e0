"""Make tests/goldens_text/tool_calls.json: what vLLM's parsers read of the calls that published chat templates render.

    python scripts/make_tool_call_cases.py --templates DIR

Needs vllm (0.32 made the file), transformers and jinja2; the engine is not imported. DIR holds published chat
templates, as llama.cpp's repository collects them in models/templates; they are not copied, only what they write of our
own conversations is. Beside that come answers as models write them who know a format less well.

What the parsers here read otherwise than vLLM's, on purpose, is not among the cases: a value without a type in the
schema that is written as JSON stays what it is; a call in a reasoning that is closed later is none.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_text" / "tool_calls.json"
BAR, LOW = "\uff5c", "\u2581"
# Template -> format here, vLLM's tool parser, its reasoning parser.
TEMPLATES = {
    "Qwen3-Coder": ("qwen3_xml", "qwen3_coder", None),
    "Qwen3.5-4B": ("qwen3_xml", "qwen3_xml", "qwen3"),
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": ("qwen3_xml", "qwen3_coder", "nemotron_v3"),
    "GLM-4.6": ("glm45", "glm45", "glm45"),
    "GLM-4.7-Flash": ("glm45", "glm47", "glm45"),
    "google-gemma-4-31B-it": ("gemma4", "gemma4", "gemma4"),
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": ("deepseek_v3", "deepseek_v3", "deepseek_r1"),
    "deepseek-ai-DeepSeek-V3.1": ("deepseek_v31", "deepseek_v31", "deepseek_v3"),
    "deepseek-ai-DeepSeek-V3.2": ("deepseek_v32", "deepseek_v32", "deepseek_v3"),
    "deepseek-ai-DeepSeek-V4": ("deepseek_v4", "deepseek_v4", "deepseek_v4"),
    "ibm-granite-granite-4.0": ("hermes", "granite4", None),
    "Qwen-Qwen3-0.6B": ("hermes", "hermes", "qwen3"),
    "moonshotai-Kimi-K2": ("kimi_k2", "kimi_k2", "kimi_k2"),
    "MiniMax-M2": ("minimax_m2", "minimax_m2", "minimax_m2"),
    "ByteDance-Seed-OSS": ("seed_oss", "seed_oss", "seed_oss"),
    "NVIDIA-Nemotron-Nano-v2": ("nemotron", None, None),  # vLLM has no parser of its own for it
}
AROUND_REASONING = {"gemma4": ("<|channel>thought\n", "<channel|>"), "seed_oss": ("<seed:think>", "</seed:think>\n")}
SPECIAL = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *('<|"|>', "<|turn>", "<|tool_response>", "<|im_start|>", "<|im_end|>", "<arg_key>", "</arg_key>", "<arg_value>"),
    *("</arg_value>", "<|tool_call|>", "functools", f"{BAR}DSML{BAR}"),
    *("<minimax:tool_call>", "</minimax:tool_call>", "<seed:think>", "</seed:think>", "<seed:tool_call>"),
    "</seed:tool_call>",
    *(f"<|tool_call{word}|>" for word in ("s_section_begin", "s_section_end", "_begin", "_end", "_argument_begin")),
    *(
        f"<{BAR}tool{LOW}{word}{BAR}>"
        for word in (f"calls{LOW}begin", f"calls{LOW}end", f"call{LOW}begin", f"call{LOW}end", "sep")
    ),
]
TOOLS = {
    "look_up": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "code": {"type": "string"},
            "days": {"type": "integer"},
            "ratio": {"type": "number"},
            "sure": {"type": "boolean"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "kind": {"enum": ["tide", "wind"]},
            "place": {"type": "object", "properties": {"at": {"type": "array", "items": {"type": "integer"}}}},
            "list": {"type": "array", "items": {"type": "string"}},
        },
    },
    "g": {"type": "object", "properties": {}},
}
CALLS: list[list[tuple[str, dict[str, Any]]]] = [
    [("look_up", {"city": "Bern"})],
    [
        ("look_up", {"city": "Z\u00fcrich \u2014 \U0001f30d", "code": 'if a < b:\n\tprint("{x}", [1])\n\n# \\n'}),
        ("g", {}),
    ],
    [("g", {}), ("look_up", {"code": "5", "days": -3, "ratio": 0.5, "sure": True}), ("g", {})],
    [("look_up", {"place": {"at": [1, 2], "name": "]}"}, "list": ["a, b", "c:d"], "kind": "tide"})],
    [("look_up", {"note": "nothing", "code": "", "list": [], "sure": False})],
]


def _dsml(text: str) -> str:
    """A text with the mark where it has a bar."""
    return text.replace("|", f"{BAR}DSML{BAR}")


LOOSE = {
    ("qwen3_xml", "qwen3_coder"): [
        "<function=look_up>\n<parameter=city>\nBern\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=look_up>\n<parameter=city>Bern<parameter=days>5</parameter></function></tool_call>",
        "<tool_call>\n<function=look_up>\n<parameter=sure>\nTrue\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=look_up>\n<parameter=days>\nsome\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=g>\n</function>\n<tool_call>\n<function=g>\n</function>\n</tool_call>",
        "<tool_call>\n<function=look_up>\n<parameter=note>\nnull\n</parameter>\n</function>\n</tool_call>",
    ],
    ("glm45", "glm45"): [
        "<tool_call>g</tool_call>",
        "<tool_call>look_up\n<arg_key>days</arg_key><arg_value>5</arg_value>\n\n</tool_call>",
        "I look.<tool_call>look_up<arg_key> city </arg_key>\n<arg_value>Bern\n</arg_value></tool_call>",
    ],
    ("gemma4", "gemma4"): [
        '<|tool_call>:look_up{city:<|"|>Bern<|"|>}<tool_call|>',
        "<|tool_call>call:look_up{city:Bern,days:5,sure:True}<tool_call|>",
        '<|tool_call>call:look_up{ city: <|"|>Bern<|"|> , days: 5 }<tool_call|>',
        '<|tool_call>call:look_up{<|"|>city<|"|>:<|"|>a, b: {c}<|"|>}<tool_call|>',
        '<|tool_call>call:look_up{city:<|"|>{"a": [1]}<|"|>}<tool_call|>',
    ],
    ("deepseek_v4", "deepseek_v4"): [
        _dsml('<|tool>\n<|invoke name="g">\n</|invoke>\n</|tool_calls>'),
        _dsml('<|tool_calls><|invoke name="look_up"><|parameter name="city">Bern</|parameter></|invoke></|tool_calls>'),
        _dsml(
            '<|tool_calls><|invoke name="look_up"><|parameter name="code" string="false">5</|parameter>'
            '<|parameter name="days" string="true">5</|parameter></|invoke></|tool_calls>'
        ),
        _dsml('<|invoke name="g"></|invoke></|tool_calls>'),
    ],
    ("deepseek_v41", "deepseek_v41"): [
        _dsml(
            '<| calls>\n<| invoke name="look_up">\n<| parameter name="city" string="true">Bern</| parameter>\n'
            '</| invoke>\n<| invoke name="g">\n</| invoke>\n</| calls>'
        )
    ],
    ("granite", "granite"): [
        '<|tool_call|>[{"name": "look_up", "arguments": {"city": "Bern"}}, {"name": "g", "arguments": {}}]'
    ],
    ("phi4_mini", "phi4_mini_json"): [
        'functools[{"name": "look_up", "arguments": {"city": "Bern"}}, {"name": "g", "arguments": {}}]'
    ],
}


def refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def environment() -> ImmutableSandboxedEnvironment:
    """As transformers makes it."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    made.filters["tojson"] = lambda x, ensure_ascii=False, indent=None: json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent
    )
    made.filters["from_json"] = json.loads
    made.globals["raise_exception"] = refuse
    made.globals["strftime_now"] = lambda pattern: datetime.datetime(2025, 3, 4).strftime(pattern)
    return made


def turns(source: str, contents: tuple[str, ...]) -> list[str]:
    """What the template writes of each turn with calls."""
    template = environment().from_string(source)
    user = {"role": "user", "content": "Tides?"}
    tools = [{"type": "function", "function": {"name": n, "description": n, "parameters": s}} for n, s in TOOLS.items()]
    given = {"tools": tools, "bos_token": "", "eos_token": "", "enable_thinking": True, "thinking": True}
    opened = template.render(messages=[user], add_generation_prompt=True, **given)
    found = []
    for calls in CALLS:
        for content in contents:
            answer = {
                "role": "assistant",
                "content": content,
                "tool_calls": [_call(i, *call) for i, call in enumerate(calls)],
            }
            text = template.render(messages=[user, answer], add_generation_prompt=False, **given)
            common = next(
                (i for i, (a, b) in enumerate(zip(opened, text, strict=False)) if a != b), min(len(opened), len(text))
            )
            found.append(_tidy(text[common - text[:common].endswith("<") :]))
    return found


def _call(number: int, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The id is one that Kimi's template shows as it is."""
    return {"id": f"functions.{name}:{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


def _tidy(text: str) -> str:
    """Without what stands around an answer: the rest of an opening and the end token, which an engine drops."""
    for end in (
        "<|im_end|>",
        "<|tool_response>",
        f"<{BAR}end{LOW}of{LOW}sentence{BAR}>",
        "<|end_of_text|>",
        "<SPECIAL_12>",
        "[e~[",
        "<seed:eos>",
    ):
        text = text.split(end)[0]
    for begin in ("</think>", "<channel|>"):  # of an empty reasoning that the template shows
        text = text.split(begin)[-1] if text.find(begin) < 20 else text
    return text.rstrip("\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--templates", type=Path, required=True, metavar="DIR")
    folder = parser.parse_args().templates
    read = reader()
    cases: list[dict[str, Any]] = []
    for name, (form, tool_parser, reasoning_parser) in TEMPLATES.items():
        # Gemma's writes a text behind the calls, Nemotron's in a turn of its own.
        contents = ("",) if form in ("gemma4", "nemotron") else ("", "I look.")
        for i, text in enumerate(turns((folder / f"{name}.jinja").read_text(encoding="utf-8"), contents)):
            if form == "seed_oss" and CALLS[i // len(contents)][0][1].get("place"):
                continue  # its template writes lists and objects as Python does, which says nothing to vLLM's parser
            case = {"from": name, "format": form, "text": text, "reasons": False, "written": CALLS[i // len(contents)]}
            cases.append({**case, **(read(text, tool_parser, None) if tool_parser else {})})
            if reasoning_parser is not None and tool_parser is not None and i < 2:
                opening, closing = AROUND_REASONING.get(form, ("<think>", "</think>\n\n"))
                text = f"{opening}Tides, hm.\n{closing}{text.lstrip()}"
                cases.append({**case, "text": text, "reasons": True, **read(text, tool_parser, reasoning_parser)})
    for (form, tool_parser), texts in LOOSE.items():
        cases += [
            {"from": "", "format": form, "text": text, "reasons": False, **read(text, tool_parser, None)}
            for text in texts
        ]
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    OUT.write_text(f'{{"tools": {json.dumps(TOOLS)}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(len(cases), "cases")


def reader() -> Any:
    """What vLLM's parsers say of a text."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model)
    tokenizer.add_tokens(SPECIAL, special_tokens=True)
    tools = [{"type": "function", "function": {"name": name, "parameters": schema}} for name, schema in TOOLS.items()]
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "x"}], tools=tools)
    thinking = {"enable_thinking": True, "thinking": True}

    def read(text: str, tool_parser: str, reasoning_parser: str | None) -> dict[str, Any]:
        reasoning: str | None = None
        rest: str | None = text
        if reasoning_parser is not None:
            found = ReasoningParserManager.get_reasoning_parser(reasoning_parser)(
                tokenizer, chat_template_kwargs=thinking
            )
            reasoning, rest = found.extract_reasoning(text, request)
        told = ToolParserManager.get_tool_parser(tool_parser)(tokenizer, request.tools).extract_tool_calls(
            rest or "", request
        )
        calls = [[call.function.name, json.loads(call.function.arguments)] for call in told.tool_calls]
        return {"content": (told.content or "").strip(), "reasoning": (reasoning or "").strip(), "calls": calls}

    return read


if __name__ == "__main__":
    main()
