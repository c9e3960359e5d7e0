"""The command line's own parser: one look for the help and one line for every error, whatever the command."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

BAD_INPUT = 2  # exit code of what cannot be, as argparse has it
FAILURE = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells say it

# What argparse says, and how it is said here.
_WORDS = (
    (r"^the following arguments are required: ", "missing: "),
    (r"^(\S+): not allowed with argument (\S+)$", r"\1 cannot go with \2"),
    (r"^(\S+): expected (one|at least one) argument$", r"\1 needs a value"),
    (r"^(\S+): expected (\d+) arguments$", r"\1 needs \2 values"),
    (r"^(\S+): ignored explicit argument (.*)$", r"\1 takes no value, and \2 was given"),
    (r"^ambiguous option: (\S+) could match (.*)$", r"\1 could be \2: say which"),
)
# vLLM's names of options, and ours: taken wherever the command has ours.
ALIASES: Mapping[str, str] = {
    "-tp": "--tensor-parallel-size",
    "-ep": "--enable-expert-parallel",
    "-q": "--quantization",
    "--block-size": "--page-size",
    "--num-gpu-blocks-override": "--num-pages",
    "--device-memory-utilization": "--gpu-memory-utilization",
    "--shutdown-timeout": "--grace-seconds",
    "--ssl-certfile": "--tls-cert",
    "--ssl-keyfile": "--tls-key",
}
_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


class CommandError(Exception):
    """Ends a command: one line for stderr and an exit code."""

    def __init__(self, message: str, code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.code = code


def fail(program: str, message: str, code: int) -> int:
    """One line on standard error, behind what is on standard output already. Returns `code`."""
    sys.stdout.flush()
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def meant(word: str, known: Iterable[str]) -> str:
    """ "; did you mean ...?" for a misspelt word, or nothing."""
    names = {name.lstrip("-"): name for name in known}
    close = difflib.get_close_matches(word.lstrip("-"), names, n=1)
    return f"; did you mean {names[close[0]]}?" if close else ""


class Help(argparse.HelpFormatter):
    """Says of every option what holds without it."""

    def __init__(self, prog: str, **_: Any) -> None:
        super().__init__(prog, max_help_position=34, width=110)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or "--help" in action.option_strings or "(default: " in text:
            return text
        if action.required:
            return f"{text} (required)"
        return f"{text} (default: {_default(action).replace('%', '%%')})".strip()


def _default(action: argparse.Action) -> str:
    if action.nargs == 0:  # a flag
        return spelled(action.default is True)
    return spelled(None if action.default in ("", argparse.SUPPRESS) else action.default)


def spelled(value: Any) -> str:
    """A default as the help shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


class CommandParser(argparse.ArgumentParser):
    """argparse whose errors are one line that says what may have been meant. `_` in an option's name is taken as `-`, a
    name of ALIASES as what it stands for.

    A type's function raises ArgumentTypeError with what the value "must be". Exits with `BAD_INPUT`, as argparse does.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": Help, **settings})

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        found, rest = self.parse_known_args(args, namespace)
        if rest:
            self._refuse(rest[0])
        return found

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        given = list(sys.argv[1:] if args is None else args)
        options = given.index("--") if "--" in given else len(given)
        given[:options] = map(self._spelt, given[:options])
        if self._subparsers is None:  # a misspelt name is told before what is missing because of it
            for text in given[:options]:
                if self._is_unknown(text.partition("=")[0]):
                    self._refuse(text.partition("=")[0])
        found: tuple[argparse.Namespace, list[str]] = super().parse_known_args(given, namespace)
        return found

    def _spelt(self, text: str) -> str:
        name, equals, value = text.partition("=")
        dashed = name.replace("_", "-") if name.startswith("--") else name
        ours = ALIASES.get(dashed, dashed)
        return f"{ours}{equals}{value}" if name.startswith("-") and ours in self._option_string_actions else text

    def _is_unknown(self, name: str) -> bool:
        if not name.startswith("--") or " " in name:
            return False
        return not any(known.startswith(name) for known in self._option_string_actions)  # argparse takes beginnings

    def _refuse(self, text: str) -> NoReturn:
        if text.startswith("-"):
            for action in self._actions:
                if not action.option_strings and text.lstrip("-") == action.dest.rstrip("s"):
                    usage = " ".join(self.format_usage().split())
                    self.error(f"there is no option {text}; {action.metavar} is given without one: {usage}")
            aliases = [name for name, ours in ALIASES.items() if ours in self._option_string_actions]
            hint = (
                meant(text, [*self._option_string_actions, *aliases]) or f"; {self.prog} --help lists those there are"
            )
            self.error(f"there is no option {text}{hint}")
        self.error(f"{text!r} is one argument too many; {' '.join(self.format_usage().split())}")

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        for found, ours in _WORDS:
            said = re.sub(found, ours, said)
        if said.startswith("missing: "):
            said += f"; {' '.join(self.format_usage().split())}"
        sys.exit(fail(self.prog, said, BAD_INPUT))

    # argparse calls these two for every value; both raise ArgumentError.
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            name = "/".join(action.option_strings) or str(action.metavar or action.dest)
            wrong = f"{name} is {value!r}; it must be one of {', '.join(known)}"
            raise argparse.ArgumentError(None, wrong + meant(str(value), known))

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            allowed = f"it must be {_KINDS[action.type]}" if action.type in _KINDS else error.message
            name = "/".join(action.option_strings) or str(action.metavar or action.dest)
            raise argparse.ArgumentError(None, f"{name} is {arg_string!r}; {allowed}") from error
