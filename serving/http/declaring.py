"""How a request's fields are declared: what the document says of them, and which of their values mean something."""

from __future__ import annotations

from typing import Any, NamedTuple

from msgspec import Meta

REPLACE = "x-replace"


class Refused(NamedTuple):
    """A field of OpenAI or vLLM that is taken with its neutral values only."""

    neutral: tuple[Any, ...]
    why: str


class NoEffect(NamedTuple):
    """A field that is known, and of which nothing follows. Whatever is not neutral is reported (see ignored.py)."""

    neutral: tuple[Any, ...]
    why: str


def doc(description: str, **schema: Any) -> Meta:
    return Meta(description=description, extra_json_schema=schema)


def as_schema(description: str, schema: dict[str, Any], *, null: bool = True) -> Meta:
    """The document says `schema` where the type is checked by hand (see openapi.py)."""
    return doc(description, **{REPLACE: {"anyOf": [schema, {"type": "null"}]} if null else schema})


def list_of(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


def no_effect(why: str, *neutral: Any) -> Meta:
    return Meta(description=f"No effect: {why}", extra={"no effect": NoEffect(neutral, why)})
