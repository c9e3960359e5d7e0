"""Writes docs/api.md from the HTTP door's OpenAPI document; `--check` says whether the file is that already.

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

from serving.http.openapi import document

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "api.md"
_REFERENCE = "#/components/schemas/"
_BOUNDS = {
    "minimum": "{} or more", "exclusiveMinimum": "more than {}",
    "maximum": "{} at most", "exclusiveMaximum": "less than {}",
    "minLength": "{} characters or more", "maxLength": "{} characters at most", "minItems": "{} items or more",
    "maxItems": "{} items at most", "maxProperties": "{} entries at most", "pattern": "`{}`",
}  # fmt: skip


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
        cells = (shown, _type(field, schemas), allowed, field.get("description", ""))
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines)


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
    parser.add_argument("--check", action="store_true", help="write nothing; status 1 if the file is another")
    arguments = parser.parse_args()
    text = page()
    if arguments.check:
        same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(f"{PAGE.relative_to(ROOT)}: {'as the schema says' if same else 'run scripts/generate_api_page.py'}")
        return 0 if same else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(text.splitlines())} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
