#!/usr/bin/env bash
# Asked: does regex_to_lark(r"\d") keep digits to ASCII, as its stub says it does (use_ascii: str = "d")?
# Version: llguidance 1.9.1, Python 3.12.
# Behaviour: without the argument nothing is replaced, and the grammar lets through digits of every script, such as U+07C9;
# with "d" written out they are refused.
# Output seen (2026-11-30): no argument: \d, U+07C9 True; "d": [0-9], U+07C9 False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1
"$folder/venv/bin/python" - <<'PY'
import json
from pathlib import Path

import llguidance
from llguidance import LLMatcher, LLTokenizer, regex_to_lark

tokenizer = LLTokenizer("byte")
stub = (Path(llguidance.__file__).parent / "_lib.pyi").read_text()
assert 'def regex_to_lark(regex: str, use_ascii: str = "d") -> str:' in stub, "the stub has changed"


def lets_through(expression: str, text: str) -> bool:
    grammar = json.dumps({"grammars": [{"lark_grammar": f"start: /{expression}/"}]})
    data = list(text.encode())
    matcher = LLMatcher(tokenizer, grammar)
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


for name, expression in (("no argument", regex_to_lark(r"\d")), ('"d"', regex_to_lark(r"\d", "d"))):
    print(f"{name}: {expression}, U+07C9 {lets_through(expression, chr(0x7C9))}")
assert lets_through(regex_to_lark(r"\d"), chr(0x7C9)), "the behaviour has changed"
assert not lets_through(regex_to_lark(r"\d", "d"), chr(0x7C9))
PY
