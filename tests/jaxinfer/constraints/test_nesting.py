"""What lies too deep within each other is refused before a library that calls itself for every level is asked."""

from __future__ import annotations

from typing import Any

import pytest

from jaxinfer.constraints.constraint import AnswerShape, constraint_of
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.errors import InvalidRequest


def made(**asked: Any) -> str:
    return constraint_of(StructuredOutputsParams(**asked), None, AnswerShape())


def chain(count: int, link: Any, last: Any) -> dict[str, Any]:
    """Definitions of which each refers to the next; `link` makes one of a reference."""
    links = {f"d{i}": link({"$ref": f"#/$defs/d{i + 1}"}) for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{count}": last}}


LINKS = {
    "object": lambda reference: {"type": "object", "properties": {"a": reference}},
    "any of": lambda reference: {"anyOf": [reference, {"type": "null"}]},
    "all of": lambda reference: {"allOf": [reference, {"minimum": 0}]},
    "list": lambda reference: {"type": "array", "items": reference},
}


@pytest.mark.parametrize("kind", LINKS)
def test_references_lead_so_far_and_no_further(kind: str) -> None:
    assert made(json=chain(180, LINKS[kind], {"type": "integer"}))
    with pytest.raises(InvalidRequest, match=r"^structured_outputs\.json is .* through at most 800 levels$"):
        made(json=chain(500, LINKS[kind], {"type": "integer"}))


def test_circles_count_as_far_as_they_may_lead() -> None:
    assert made(json=chain(180, LINKS["object"], {"$ref": "#/$defs/d0"}))
    assert made(json={"type": "object", "properties": {"next": {"$ref": "#"}, "items": {"items": {"$ref": "#"}}}})
    with pytest.raises(InvalidRequest, match="through at most 800 levels"):
        made(json=chain(290, LINKS["object"], {"$ref": "#/$defs/d0"}))


def test_many_definitions_beside_each_other_are_no_depth() -> None:
    definitions = {f"d{i}": {"type": "object", "properties": {"a": {"type": "integer"}}} for i in range(400)}
    assert made(json={"properties": {name: {"$ref": f"#/$defs/{name}"} for name in definitions}, "$defs": definitions})


@pytest.mark.parametrize("sign", [":", "::="])
def test_rules_of_grammars(sign: str) -> None:
    def grammar(count: int, body: str = "r{}") -> str:
        start = "start" if sign == ":" else "root"
        rules = [f"r{i} {sign} {body.format(i + 1)}" for i in range(count)]
        return "\n".join([f"{start} {sign} r0", *rules, f'r{count} {sign} "a"', ""])

    assert made(grammar=grammar(500))
    nested = "((r{}))" if sign == ":" else "r{}"
    assert made(grammar=grammar(100, nested))
    for text in (grammar(1500), grammar(600, "((r{}))")):
        with pytest.raises(InvalidRequest, match=r"^structured_outputs\.grammar is .* may be 1000 at most$"):
            made(grammar=text)


def test_references_of_schemas_inside_of_grammars() -> None:
    inner = ", ".join(f'"d{i}": {{"$ref": "#/$defs/d{i + 1}"}}' for i in range(200))
    with pytest.raises(InvalidRequest, match="at most 100 are allowed"):
        made(grammar=f'start: %json {{"$ref": "#/$defs/d0", "$defs": {{{inner}}}}}')
