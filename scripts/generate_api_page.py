"""Writes docs/api.md from the HTTP server's OpenAPI document, and docs/http.md's table of sampling parameters from
their declaration; `--check` says whether the files are that already.

python scripts/generate_api_page.py [--check]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from jaxinfer.sampling_params import FIELDS
from serving.http.openapi import document

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
GUIDE = ROOT / "docs" / "http.md"  # written by hand but for what stands between these lines
BEGIN, END = (
    f"<!-- sampling parameters: written by scripts/{Path(__file__).name} -->",
    "<!-- end of sampling parameters -->",
)
_REFERENCE = "#/components/schemas/"
_BOUNDS = {
    "minimum": "{} or more", "exclusiveMinimum": "more than {}",
    "maximum": "{} at most", "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more", "maxLength": "{} characters at most", "minItems": "{} items or more",
    "maxItems": "{} items at most", "maxProperties": "{} entries at most", "pattern": "`{}`",
}  # fmt: skip


_BODIES = {"every": "all", "text": "completions, chat", "own": "see below"}
_KINDS = {
    "boolean": "true or false", "strings": "a string or a list of strings", "token_ids": "a list of token ids",
    "logit_bias": "an object of numbers by token id", "structured": "see [structured output](structured_output.md)",
}  # fmt: skip


def guide(text: str) -> str:
    """`text`, docs/http.md's, with the table as the parameters are declared. ValueError without its two lines."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{GUIDE.name} lacks a line: {BEGIN if not begin else END}")
    rows = ["| sampling parameter | in | | allowed | default |", "| --- | --- | --- | --- | --- |"]
    for name, declared in FIELDS.items():
        allowed = declared.range or _KINDS[declared.kind]
        rows.append(_row(f"`{name}`", _BODIES[declared.http], declared.sentence, allowed, declared.default_in_words))
    return "\n".join([before + begin, "", *rows, "", end + after])


def page() -> str:
    """The whole file."""
    found = document()
    parts = [
        "# HTTP API",
        "Made by `scripts/generate_api_page.py` from the server's own description of itself, which `GET /openapi.json` "
        "answers with. A field that is not listed is refused by name; what fields do beyond this: [http](http.md).",
    ]
    for path, methods in found["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method.upper(), path, operation, found["components"]["schemas"])
    return "\n\n".join(parts) + "\n"


def _operation(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[str]:
    yield f"## {method} {path}"
    yield operation["summary"] + "."
    body = operation.get("requestBody")
    if body is not None:
        name = body["content"]["application/json"]["schema"]["$ref"].removeprefix(_REFERENCE)
        yield _fields(schemas[name], schemas)
    codes = [f"{code} ({answer['description']})" for code, answer in operation["responses"].items()]
    yield "Answers: " + "; ".join(codes) + "."


def _fields(schema: dict[str, Any], schemas: dict[str, Any]) -> str:
    required = set(schema.get("required", ()))
    lines = ["| field | type | allowed | what |", "| --- | --- | --- | --- |"]
    for name, field in schema["properties"].items():
        allowed = ", ".join(dict.fromkeys(_allowed(field)))
        shown = f"`{name}`" + (", required" if name in required else "")
        lines.append(_row(shown, _type(field, schemas), allowed, field.get("description", "")))
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _type(field: dict[str, Any], schemas: dict[str, Any]) -> str:
    """In words. Null is left out: every field that is not required takes it for "not given"."""
    if "$ref" in field:
        return _object(schemas[field["$ref"].removeprefix(_REFERENCE)])
    for union in ("anyOf", "oneOf"):
        if union in field:
            kinds = [_type(kind, schemas) for kind in field[union]]
            return " or ".join(dict.fromkeys(kind for kind in kinds if kind != "null"))
    if "enum" in field:
        return " or ".join(f"`{json.dumps(value)}`" for value in field["enum"] if value is not None)
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    kind = field.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(one for one in kind if one != "null")
    if kind == "array":
        items = field.get("items")
        return f"list of {_type(items, schemas)}" if isinstance(items, dict) and items else "list"
    return str(kind)


def _object(schema: dict[str, Any]) -> str:
    names = ", ".join(f"`{name}`" for name in schema.get("properties", ()))
    return f"object with {names}" if names else "object"


def _allowed(field: dict[str, Any]) -> Iterator[str]:
    for part in (field, *field.get("anyOf", ())):
        for name, text in _BOUNDS.items():
            if name in part:
                yield text.format(part[name])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if a file is another")
    arguments = parser.parse_args()
    stale = 0
    for path, text in ((PAGE, page()), (GUIDE, guide(GUIDE.read_text(encoding="utf-8")))):
        same = path.exists() and path.read_text(encoding="utf-8") == text
        if arguments.check:
            stale += not same
            print(f"{path.relative_to(ROOT)}: {'up to date' if same else f'run scripts/{Path(__file__).name}'}")
        elif not same:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: written")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
