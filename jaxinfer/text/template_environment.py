"""The sandboxed Jinja environment in which chat templates run: the dialect that transformers defines.

Templates come with checkpoints, so they are treated as untrusted: an immutable sandbox, no attribute access to Python
internals, plain JSON data only (see chat.py), and a budget of operations and time (see template_budget.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.utils import Namespace

from jaxinfer.text.template_budget import BudgetEnvironment


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`: marks assistant text for training; here it renders its body.

    The body is a call block, as in transformers, so a variable set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it as an instance attribute)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parses the tag's body up to `endgeneration`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's `namespace` without underscore names, which are how a template would reach Python internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # No named parameters, so that a template may call namespace(self=...).
        self, values = args[0], dict(*args[1:], **kwargs)
        for name in values:
            _Namespace._check(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name: object) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a chat template must not store {name!r} on a namespace: it starts with an underscore")


class _Dict:
    """`dict` for templates: makes dicts, and offers no other attribute of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


def make_environment(now: Callable[[], datetime] = datetime.now, **budget: Any) -> BudgetEnvironment:
    """An environment for chat templates.

    Args:
        now: the clock of `strftime_now`; local time by default, as in transformers.
        budget: see BudgetEnvironment.
    """

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def strftime_now(pattern: str) -> str:
        return now().strftime(pattern)

    environment = BudgetEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols], **budget
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["dict"] = _Dict()
    environment.globals["namespace"] = _Namespace
    environment.limit_filters()
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML characters and sorts keys; a prompt must carry neither change.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
