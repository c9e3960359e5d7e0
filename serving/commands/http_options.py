"""Command-line options of the HTTP server."""

from __future__ import annotations

import argparse
import json
import math

from serving.http.envelope import CorsConfig, CorsError
from serving.http.http_server import KEEP_ALIVE_SECONDS, HttpConfig
from serving.http.response_store import DEFAULT_BYTES, DEFAULT_SECONDS, StoreLimits

_LIST = "it must be a JSON list of strings, as '[\"*\"]'"


def add_http_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("HTTP (docs/http.md)")
    group.add_argument(
        "--http-keep-alive",
        "--timeout-keep-alive",  # uvicorn's name
        type=_seconds,
        metavar="S",
        default=KEEP_ALIVE_SECONDS,
        help="how long a connection may be idle between two requests; 0 closes it behind each answer",
    )
    group.add_argument(
        "--response-store",
        type=_bytes,
        metavar="BYTES",
        default=DEFAULT_BYTES,
        help="room for responses that clients go on from (previous_response_id); none keeps no response",
    )
    group.add_argument(
        "--response-store-seconds",
        type=_positive_seconds,
        metavar="S",
        default=DEFAULT_SECONDS,
        help="how long a response is kept that nobody uses",
    )
    for name, default, what in (
        (
            "origins",
            [],
            "pages of these origins may call, as '[\"https://example.org\"]' or '[\"*\"]'; by default none",
        ),
        ("methods", ["*"], "with these methods"),
        ("headers", ["*"], "and these request headers"),
    ):
        group.add_argument(f"--allowed-{name}", type=_strings, metavar="JSON", default=default, help=what)
    group.add_argument(
        "--allow-credentials", action="store_true", help="browsers may send cookies and client certificates along"
    )


def http_config(arguments: argparse.Namespace) -> HttpConfig:
    """Raises CorsError."""
    cors = CorsConfig(
        tuple(arguments.allowed_origins),
        tuple(arguments.allowed_methods),
        tuple(arguments.allowed_headers),
        arguments.allow_credentials,
    )
    return HttpConfig(arguments.http_keep_alive, cors)


def store_limits(arguments: argparse.Namespace) -> StoreLimits | None:
    """None: no response is kept."""
    if arguments.response_store is None:
        return None
    return StoreLimits(arguments.response_store, arguments.response_store_seconds)


def check_http_options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program with a word on the option that cannot be."""
    try:
        http_config(arguments)
    except CorsError as error:
        name, _, rest = str(error).partition(" ")
        parser.error(f"--{name.replace('_', '-')} {rest}")


def _strings(text: str) -> list[str]:
    """A JSON list of strings, as vLLM takes it; a string alone is a list of one."""
    try:
        found = json.loads(text) if text.lstrip().startswith(("[", '"')) else text
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{_LIST} ({error})") from error
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(each, str) and each for each in found):
        raise argparse.ArgumentTypeError(_LIST)
    return found


def _bytes(text: str) -> int | None:
    if text == "none":
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 1 << 63):
        raise argparse.ArgumentTypeError("it must be a number of bytes, 1 or more, or none")
    return int(text)


def _positive_seconds(text: str) -> float:
    value = _seconds(text)
    if not value:
        raise argparse.ArgumentTypeError("it must be more than 0")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError("it must be a number of seconds, 0 or more")
    return value
