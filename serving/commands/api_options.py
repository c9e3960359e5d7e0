"""Command-line options of what the endpoints make of requests and answers, for a server and for batches."""

from __future__ import annotations

import argparse
from typing import get_args

from jaxinfer.text.answers import REASONING_PARSERS, TOOL_CALL_PARSERS
from serving.http.api import ApiConfig
from serving.http.ignored import UnknownFields


def add_api_options(parser: argparse.ArgumentParser) -> None:
    for name, choices, what in (
        ("--tool-call-parser", TOOL_CALL_PARSERS, "tool calls"),
        ("--reasoning-parser", REASONING_PARSERS, "its reasoning"),
    ):
        how = f"how the model writes {what}; auto: judged by its chat template"
        parser.add_argument(name, choices=choices, default="auto", help=how)
    parser.add_argument(
        "--unknown-fields",
        choices=get_args(UnknownFields),
        default="report",
        help="what becomes of fields of requests that have no effect; report: the answer names them (docs/http.md)",
    )
    parser.add_argument(
        "--trust-request-chat-template",
        action="store_true",
        help="requests may bring chat templates of their own, which are programs: for clients that are trusted",
    )
    parser.add_argument(
        "--stream-interval",
        type=int,
        metavar="N",
        default=ApiConfig().stream_interval,
        help="tokens that an event of a stream has at least, behind the first, which is sent at once",
    )


def api_config(arguments: argparse.Namespace) -> ApiConfig:
    """Of the options that `add_api_options` adds. Raises ConfigError."""
    return ApiConfig(
        arguments.tool_call_parser,
        arguments.reasoning_parser,
        arguments.unknown_fields,
        arguments.trust_request_chat_template,
        arguments.stream_interval,
    )
