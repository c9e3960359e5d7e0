"""`jaxinfer keys`: makes API keys and lists those of a file. To take one back, delete its entry or disable it there."""

from __future__ import annotations

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.access import keys
from serving.access.caller import INFER, ROLES
from serving.commands.parsing import BAD_INPUT, CommandParser, fail

DEFAULT_FILE = Path("keys.toml")
_MOST_DAYS = 36_500  # the calendar ends some time
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def make_parser(program: str) -> argparse.ArgumentParser:
    parser = CommandParser(
        prog=f"{program} keys",
        usage="%(prog)s COMMAND [OPTION ...]",
        description="API keys of `serve --api-keys FILE`. To take one back, delete its entry there or disable it.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands", prog=parser.prog
    )
    what = "make a key, print it once, append its hash"
    new = commands.add_parser("new", help=what, description=f"{what}.".capitalize(), usage="%(prog)s [OPTION ...]")
    new.add_argument("--tenant", required=True, metavar="NAME", type=_tenant, help="whom the key's use is charged to")
    new.add_argument(
        "--role", action="append", choices=ROLES, help=f"what the key may do; may be repeated (default: {INFER})"
    )
    for name, what in (
        ("requests-per-minute", "requests"),
        ("tokens-per-minute", "tokens of prompts and answers"),
        ("max-concurrency", "sequences at a time"),
    ):
        new.add_argument(f"--{name}", type=_positive, metavar="N", help=f"most {what} of this key")
    new.add_argument(
        "--expires-in-days", type=_days, metavar="N", help="not valid after so many days (default: never ends)"
    )
    what = "show a file's keys, without any secret"
    show = commands.add_parser("list", help=what, description=f"{what}.".capitalize(), usage="%(prog)s [OPTION ...]")
    for command in (new, show):
        command.add_argument("--file", type=Path, default=DEFAULT_FILE, metavar="FILE", help="the file of keys")
    return parser


def main(argv: Sequence[str], *, program: str = "jaxinfer") -> int:
    """Returns the exit code: 0, or 2 where the file cannot be used."""
    parser = make_parser(program)
    if not argv:
        parser.print_help()
        return BAD_INPUT
    arguments = parser.parse_args(argv)
    try:
        return _new(arguments) if arguments.command == "new" else _list(arguments)
    except keys.KeysError as error:
        return fail(parser.prog, str(error), BAD_INPUT)


def _new(arguments: argparse.Namespace) -> int:
    days = arguments.expires_in_days
    expires = None
    if days is not None:
        now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
        expires = now + datetime.timedelta(days=days)
    limits = keys.KeyLimits(
        requests_per_minute=arguments.requests_per_minute,
        tokens_per_minute=arguments.tokens_per_minute,
        max_concurrency=arguments.max_concurrency,
    )
    roles = list(dict.fromkeys(arguments.role or [INFER]))
    key, key_id = keys.add_key(arguments.file, arguments.tenant, roles, limits, expires)
    print(key)
    print(f"key {key_id} is in {arguments.file}; it is shown this once and kept nowhere", file=sys.stderr)
    return 0


def _list(arguments: argparse.Namespace) -> int:
    found = keys.load(arguments.file)
    rows = [("key", "tenant", "roles", "requests/min", "tokens/min", "concurrency", "valid")]
    for key in found.keys.values():
        numbers = (key.requests_per_minute, key.tokens_per_minute, key.max_concurrency)
        valid = "disabled" if key.disabled else "" if key.expires is None else f"until {key.expires.isoformat()}"
        limits = ["-" if number is None else str(number) for number in numbers]
        rows.append((key.id, key.tenant, "+".join(key.roles), limits[0], limits[1], limits[2], valid))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())
    return 0


def _tenant(text: str) -> str:
    if not _TENANT.fullmatch(text):
        raise argparse.ArgumentTypeError("it must be 1 to 64 letters, digits, dots, underscores or dashes")
    return text


def _days(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= _MOST_DAYS:
        raise argparse.ArgumentTypeError(f"it must be a whole number of days from 1 to {_MOST_DAYS}")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 10**9:
        raise argparse.ArgumentTypeError("it must be a whole number from 1 to 999999999")
    return int(text)
