"""A function that may be called, as a grammar of its calls needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Function:
    """parameters: a usable schema of an object, which the arguments must match. field: where in the request it stands.
    strict: what cannot be held to the schema is refused; otherwise any arguments are taken then."""

    name: str
    parameters: Mapping[str, Any]
    field: str = "tools"
    strict: bool = False
