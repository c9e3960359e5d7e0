#!/usr/bin/env bash
# Asked: is every text that a grammar made of {"type": "string", "format": "date"} lets through a date?
# Version: llguidance 1.9.1, jsonschema 4.26.0, Python 3.12.
# Behaviour: months have their own lengths (no 31 April, no 30 February), but any February may have 29 days, so that an
# answer made for the schema may be none that a validator takes.
# Output seen (2026-11-30): 2024-02-29 grammar True validator True; 2023-02-29 grammar True validator False;
# 2023-04-31 grammar False validator False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check llguidance==1.9.1 jsonschema==4.26.0
"$folder/venv/bin/python" - <<'PY'
import json

import jsonschema
from llguidance import LLMatcher, LLTokenizer

SCHEMA = {"type": "string", "format": "date"}
tokenizer = LLTokenizer("byte")
validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())


def lets_through(text: str) -> bool:
    matcher = LLMatcher(tokenizer, json.dumps({"grammars": [{"json_schema": SCHEMA}]}))
    data = list(json.dumps(text).encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


found = {}
for day in ("2024-02-29", "2023-02-29", "2023-04-31"):
    found[day] = lets_through(day), validator.is_valid(day)
    print(day, "grammar", found[day][0], "validator", found[day][1])
assert found["2024-02-29"] == (True, True)
assert found["2023-04-31"] == (False, False)
assert found["2023-02-29"] == (True, False), "the behaviour has changed"
PY
