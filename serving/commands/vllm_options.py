"""Options of `vllm serve` (0.32) that need more than another name, which `ALIASES` in parsing.py has, for command lines
that were written for it. docs/http.md has the table.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from typing import Any

_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([kKmMgGtT])")

# Switches that ask for what is so here anyway, or for what this server has no use for: they are taken, and named when
# the model is ready.
NO_EFFECT: Mapping[str, str] = {
    "--enable-auto-tool-choice": "tools are offered wherever the model's chat template shows how it calls them",
    "--exclude-tools-when-tool-choice-none": "with tool_choice none the model never sees the tools",
    "--enable-chunked-prefill": "prompts are always computed in chunks",
    "--async-scheduling": "a step is always planned while another one runs",
    "--enforce-eager": "every step is a compiled program",
    "--trust-remote-code": "no code of a checkpoint is ever run",
    "--enable-prompt-tokens-details": "usage always has them",
    "--enable-request-id-headers": "answers always have x-request-id",
    "--enable-server-load-tracking": "/load always counts",
    "--disable-log-requests": "--log-level says what is logged",
    "--enable-log-requests": "--log-level says what is logged",
    "--disable-log-stats": "/metrics is always there",
    "--disable-uvicorn-access-log": "--log-level says what is logged",
}


def size(text: str) -> int:
    """A number of tokens, as 131072, 128k (thousands) or 128K (times 1024). Raises ArgumentTypeError."""
    found = _SIZE.fullmatch(text)
    if found is None and re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    if found is not None and found[2] in _DECIMAL:
        return round(float(found[1]) * _DECIMAL[found[2]])
    if found is not None and "." not in found[1]:
        return int(found[1]) * _BINARY[found[2]]
    raise argparse.ArgumentTypeError("it must be a whole number such as 8192, 8k (8000), 25.6k or 8K (8192)")


def length(text: str) -> int | None:
    """As `size`; None for auto, or for -1, which vLLM takes for it."""
    return None if text in ("auto", "-1") else size(text)


class Listed(argparse.Action):
    """An option with several values, as `--api-key A B`, or given several times. Its default is a list."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), *values])
        namespace.listed = [*getattr(namespace, "listed", []), (self.dest, len(values))]


def settle_model(arguments: argparse.Namespace) -> None:
    """In `--served-model-name NAME MODEL` the list of names takes the MODEL, too: it is given back."""
    lists = [name for name, count in getattr(arguments, "listed", []) if count > 1]
    if arguments.model is None and lists:
        *rest, arguments.model = getattr(arguments, lists[0])
        setattr(arguments, lists[0], rest)


class _Noted(argparse.Action):
    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        namespace.without_effect = [*namespace.without_effect, option]


def add_options_without_effect(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of vLLM that are taken and have no effect")
    for name, why in NO_EFFECT.items():
        group.add_argument(name, action=_Noted, nargs=0, dest="without_effect", default=[], help=why)


def notes_of(options: Sequence[str]) -> tuple[str, ...]:
    """What is said of those that were given."""
    return tuple(f"{name} has no effect: {NO_EFFECT[name]}" for name in dict.fromkeys(options))
