"""Values of options of `bench`: each function raises ArgumentTypeError with what the value must be."""

from __future__ import annotations

import argparse
import json
import math
import re
from typing import Any

from serving.bench.measures import GOALS, METRICS

_URL = re.compile(r"(?P<scheme>grpc|https?)://(?P<place>(\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(?P<port>[0-9]+))/?")


def positive(text: str) -> int:
    return _whole(text, 1)


def not_negative(text: str) -> int:
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least {least}")
    return value


def above_zero(text: str) -> float:
    """A number above 0, or inf."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        raise argparse.ArgumentTypeError("it must be a number above 0, or inf")
    return value


def seconds(text: str) -> float:
    if (value := above_zero(text)) == math.inf:
        raise argparse.ArgumentTypeError("it must be a number of seconds above 0")
    return value


def share(text: str) -> float:
    """From 0 up to, not including, 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError("it must be a number of at least 0 and below 1")
    return value


def rates(text: str) -> tuple[float, ...]:
    try:
        found = tuple(above_zero(part.strip()) for part in text.split(","))
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError("it must be numbers above 0, or inf, with commas: 1,2,4,inf") from None
    if len(set(found)) < len(found):
        raise argparse.ArgumentTypeError("it must have each rate once")
    return found


def server_url(text: str) -> tuple[str, str]:
    """(scheme, HOST:PORT)."""
    found = _URL.fullmatch(text)
    if found is None or not 0 < int(found["port"]) <= 65_535:
        raise argparse.ArgumentTypeError(
            "it must be grpc://HOST:PORT of our own protocol, or http://HOST:PORT or https://HOST:PORT of OpenAI's, "
            "without a path"
        )
    return found["scheme"], found["place"]


def goal(text: str) -> tuple[str, float]:
    """A service level objective such as ttft:500, milliseconds."""
    name, _, value = text.partition(":")
    try:
        return _known_goal(name), above_zero(value)
    except (argparse.ArgumentTypeError, KeyError):
        raise argparse.ArgumentTypeError(f"it must be like ttft:500, milliseconds of {', '.join(GOALS)}") from None


def _known_goal(name: str) -> str:
    if name not in GOALS:
        raise KeyError(name)
    return name


def metrics(text: str) -> tuple[str, ...]:
    found = tuple(part.strip() for part in text.split(","))
    if not set(found) <= set(METRICS):
        raise argparse.ArgumentTypeError(f"it must be some of {', '.join(METRICS)}, with commas")
    return tuple(dict.fromkeys(found))


def percentiles(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(0 <= value <= 100 for value in found):
        raise argparse.ArgumentTypeError("it must be numbers from 0 to 100, with commas: 50,90,99")
    return tuple(sorted(set(found)))


def key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError("it must be KEY=VALUE")
    return key, value


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError("it must be a JSON object")
    return found
