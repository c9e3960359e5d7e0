#!/usr/bin/env bash
# Asked: does `jsonschema.FormatChecker()`, given to a draft 2020-12 validator, take the times that RFC 3339 has, which that
# draft's `format: time` names?
# Version: jsonschema 4.26.0 with its extra `format` (rfc3339-validator 0.1.4), Python 3.11.
# Behaviour: no. A checker made without arguments has the checks of all drafts under their names, and `time` in it is
# draft 3's, hours, minutes and seconds without an offset: it refuses every valid time, and takes one that the draft
# does not. The draft's own checker, `Draft202012Validator.FORMAT_CHECKER`, judges both rightly.
# Output seen (2026-11-30): 12:30:00Z made False, of the draft True; 12:30:00 made True, of the draft False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "jsonschema[format]==4.26.0" rfc3339-validator==0.1.4
"$folder/venv/bin/python" - <<'PY'
from jsonschema import Draft202012Validator, FormatChecker

schema = {"type": "string", "format": "time"}
found = {}
for time in ("12:30:00Z", "12:30:00"):
    found[time] = [
        Draft202012Validator(schema, format_checker=checker).is_valid(time)
        for checker in (FormatChecker(), Draft202012Validator.FORMAT_CHECKER)
    ]
    print(time, "made", found[time][0], "of the draft", found[time][1])
assert found["12:30:00Z"] == [False, True], "the behaviour has changed"
assert found["12:30:00"] == [True, False], "the behaviour has changed"
PY
