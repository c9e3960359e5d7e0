"""Which recorded tokenizer folders other releases of transformers read otherwise than the newest.

    NEWEST/bin/python scripts/compare_text_releases.py OTHER/bin/python [ANOTHER/bin/python ...]

Every interpreter has its own release of transformers, sentencepiece, tokenizers and jinja2. Writes
tests/goldens_text/releases.json: for each release and folder, how many texts have other ids, or decode to
another text, than the newest's, or the error. docs/tokenizers.md draws its table from that file; tests compare the two.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "tests" / "goldens_text" / "releases.json"


def read_all() -> dict[str, Any]:
    """{"version", "folders": {name: {text: [ids, decoded]} or the error's type}} of this interpreter's transformers."""
    import transformers
    from make_text_goldens import OUT as GOLDENS
    from make_text_goldens import run_case
    from text_golden_cases import CASES

    inputs = json.loads((GOLDENS / "inputs.json").read_text(encoding="utf-8"))
    folders: dict[str, Any] = {}
    for case in CASES:
        try:
            results = run_case(case, inputs)["results"]
        except Exception as error:  # whatever a release cannot read is what is recorded
            folders[case["name"]] = type(error).__name__
        else:
            folders[case["name"]] = {str(entry["text"]): [entry["ids"], entry["full"]] for entry in results}
    return {"version": transformers.__version__, "folders": folders}


def differences(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """{folder: {"of": texts, "ids": how many have other ids, "texts": decode otherwise} or {"error"}}."""
    found: dict[str, Any] = {}
    for name, wanted in new["folders"].items():
        given = old["folders"][name]
        if isinstance(given, str):
            found[name] = {"error": given}
            continue
        ids, texts = (sum(given[key][part] != wanted[key][part] for key in wanted) for part in (0, 1))
        if ids or texts:
            found[name] = {"of": len(wanted), "ids": ids, "texts": texts}
    return found


def table(document: dict[str, Any]) -> str:
    """The file's contents as the table of docs/tokenizers.md: texts with other ids, of how many."""
    versions = list(document["differences"])
    names = dict.fromkeys(name for folders in document["differences"].values() for name in folders)
    rows = [["folder", *versions], ["---"] * (len(versions) + 1)]
    for name in names:
        cells = []
        for version in versions:
            entry = document["differences"][version].get(name)
            counted = entry and ("not read" if "error" in entry else f"{entry['ids']} of {entry['of']}")
            cells.append(counted or "as newest")
        rows.append([f"`{name}`", *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", help="interpreters with other releases")
    parser.add_argument("--ids", action="store_true", help="print what this interpreter's release gives")
    arguments = parser.parse_args()
    if arguments.ids:
        print(json.dumps(read_all()))
        return
    new = read_all()
    others = [
        json.loads(subprocess.run([python, __file__, "--ids"], check=True, capture_output=True, text=True).stdout)
        for python in arguments.pythons
    ]
    found = {old["version"]: differences(old, new) for old in others}
    lines = [
        f"  {json.dumps(version)}: {{\n"
        + ",\n".join(f"   {json.dumps(name)}: {json.dumps(entry)}" for name, entry in folders.items())
        + "\n  }"
        for version, folders in found.items()
    ]
    text = f'{{\n "newest": {json.dumps(new["version"])},\n "differences": {{\n' + ",\n".join(lines) + "\n }\n}\n"
    OUT.write_text(text, encoding="utf-8")
    print(table(json.loads(text)))
    print(f"wrote {OUT}", file=sys.stderr)


if __name__ == "__main__":
    main()
