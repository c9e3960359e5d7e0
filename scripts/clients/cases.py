"""Cases of one client: `@case` before each, `finish()` at the end. Only the standard library.

A case passes when it returns, is skipped when it raises `Skip`, and fails with anything else. Each prints a line; the
last line of a run is a JSON object that scripts/check_clients.sh reads.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

# Two servers: the demo model with a longer context, and a pretended model that calls one tool and then says "done".
DEMO = os.environ.get("DEMO_URL", "http://localhost:8000")
SCRIPTED = os.environ.get("SCRIPTED_URL", "http://localhost:8001")
KEY = "none"  # clients want one, the servers do not

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL = {"name": "get_weather", "description": "The weather of a city", "parameters": WEATHER}
QUESTION = "What is 347 + 586?"

_CASES: list[Callable[[], Any]] = []


class Skip(Exception):
    """The case does not apply here; the text says why."""


def case(function: Callable[[], Any]) -> Callable[[], Any]:
    """Registers a function without arguments, which may be a coroutine function."""
    _CASES.append(function)
    return function


def finish() -> NoReturn:
    """Runs all cases and ends the program: 1 where one failed."""
    counts = {"ok": 0, "failed": 0, "skipped": 0}
    for function in _CASES:
        name = function.__name__.replace("_", " ")
        try:
            asyncio.run(function()) if inspect.iscoroutinefunction(function) else function()
        except Skip as reason:
            counts["skipped"] += 1
            print(f"  skipped  {name}: {reason}", flush=True)
        except BaseException as error:
            counts["failed"] += 1
            last = traceback.extract_tb(error.__traceback__)[-1]
            print(
                f"  FAILED   {name}: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"[:600], flush=True
            )
        else:
            counts["ok"] += 1
            print(f"  ok       {name}", flush=True)
    print(json.dumps(counts))
    sys.exit(1 if counts["failed"] else 0)


def check_weather(arguments: Any) -> None:
    """Raises AssertionError where these are not arguments of `TOOL`. arguments: JSON text, or what it says."""
    found = json.loads(arguments) if isinstance(arguments, str) else arguments
    assert set(found) == {"city", "days"}, found
    assert isinstance(found["city"], str), found
    assert 1 <= found["days"] <= 9, found
