"""Whether llguidance can use a grammar, judged without a model's tokenizer and with the place of what it cannot use."""

from __future__ import annotations

import functools
import json
import re
from typing import Any

from jaxinfer.constraints.judge import TOO_COSTLY, Judge
from jaxinfer.constraints.nesting import check_schema_levels
from jaxinfer.constraints.schema import alone, at, parts
from jaxinfer.errors import InvalidRequest

# Of a schema whose part at fault is looked for: parts that are tried, and their bytes together.
_TRIES, _TRIED_BYTES = 256, 1 << 20
_REMEMBERED = 128  # grammars
# Of what the library says, the parts that speak of its own options.
_IN_OUR_WORDS = {
    "oneOf constraints are not supported": "oneOf is supported only where no value can match two of its schemas, as "
    "far as can be told; anyOf always is",
    "NoExtensionBias": "there is no text that it allows, or none that ends",
    "min/maxProperties only supported": "minProperties and maxProperties are supported only where all of properties "
    "are required",
}
JUDGE = Judge()
_LONGEST = 300  # characters that are told


def check_schema(name: str, schema: Any, options: dict[str, Any]) -> None:
    """Raises InvalidRequest that names the innermost part of the schema that cannot be used. schema: a usable one (see
    schema.py). options: llguidance's, as `x-guidance` has them."""
    check_schema_levels(name, schema)
    fault = fault_of(_grammar_of(schema, options))
    if fault is None:
        return
    pointer, part = "", schema
    bytes_left = 0 if fault == TOO_COSTLY else _TRIED_BYTES
    for tries, (where, inner) in enumerate(parts(schema)):
        if tries >= _TRIES or bytes_left <= 0:
            break
        grammar = _grammar_of(alone(inner, schema), options)
        bytes_left -= len(grammar)
        if where and fault_of(grammar) == fault:
            pointer, part = where, inner
            break
    raise InvalidRequest(at(name, pointer), part, f"no grammar can be made of it: {fault}")


def check_lark(name: str, value: Any, grammar: str) -> None:
    """Raises InvalidRequest. value: what the client sent and the Lark `grammar` is made of."""
    fault = fault_of(json.dumps({"grammars": [{"lark_grammar": grammar}]}, ensure_ascii=False))
    if fault is not None:
        raise InvalidRequest(name, value, f"no grammar can be made of it: {fault}")


def _grammar_of(schema: Any, options: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": with_options(schema, options)}]}, ensure_ascii=False)


def with_options(schema: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The schema with llguidance's options, which only an object can have."""
    body = schema if isinstance(schema, dict) else {} if schema is True else {"enum": []}
    return {"x-guidance": options, **body}


@functools.lru_cache(maxsize=_REMEMBERED)
def fault_of(grammar: str) -> str | None:
    """What is wrong with a grammar in llguidance's JSON form; None where nothing is. Other threads go on meanwhile."""
    fault = JUDGE.fault_of(grammar)
    if fault is None or fault == TOO_COSTLY:
        return fault
    fault = fault.replace("<non-verbose/>", "")
    text = re.sub(r"\s+", " ", fault).partition(" while processing json-schema:")[0].strip()
    text = next((ours for theirs, ours in _IN_OUR_WORDS.items() if text.startswith(theirs)), text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
