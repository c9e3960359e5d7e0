"""Dates and times as expressions of their own.

RFC 3339, section 5.6. llguidance lets every February have 29 days and every minute a 60th second; here a 29th stands in
leap years alone (appendix C), from the year 1 on, and no second is a leap second, which most readers do not take.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_YEAR = "([0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_FOURTH = "(0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"([0-9]{{2}}{_FOURTH}|{_FOURTH}00)"
_DAYS = "((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
_DATE = f"({_YEAR}-{_DAYS}|{_LEAP_YEAR}-02-29)"
_HOUR_AND_MINUTE = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = f"{_HOUR_AND_MINUTE}:[0-5][0-9](\\.[0-9]+)?([Zz]|[+-]{_HOUR_AND_MINUTE})"
PATTERNS: Mapping[str, str] = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}[Tt]{_TIME}$"}


def with_own_formats(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with what its format means as a `pattern`, where it is one of `PATTERNS`."""
    pattern = PATTERNS.get(schema["format"]) if isinstance(schema.get("format"), str) else None
    if pattern is None:
        return schema
    rest = {name: value for name, value in schema.items() if name != "format"}
    if "pattern" in rest:
        return {**rest, "allOf": [*rest.get("allOf", ()), {"pattern": pattern}]}
    return {**rest, "pattern": pattern}
