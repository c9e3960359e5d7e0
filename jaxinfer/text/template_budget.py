"""A budget for chat templates, which are programs: how much they may do, and how long they may take.

What a template does is counted where it happens: every round of a loop, every call of a function, method, macro, filter
or test, every operator. Nothing else takes time in a template, so a budget of operations ends any of them, and at the
same point each time, whatever else the machine does. Work that grows with the sizes of values (comparing long texts,
sorting) is caught by the clock, which is read at every operation. One operation cannot be interrupted; those that make
much out of little (repetition, powers, padding, formatting, replacing) are judged by their operands before they run.

Why not a process that is killed after a time: it would cost every chat a copy of its messages and two switches of
process, and the answer to one request would depend on how busy the machine is. The templates are the model's own
(clients send none); what clients send are the values.
"""

from __future__ import annotations

import functools
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OPERATIONS = 2_000_000
MAX_SECONDS = 5.0
MAX_LENGTH = 1 << 26  # characters or items that one operation may make
MAX_NUMBER_BITS = 1 << 16
MAX_ITEMS = 200_000  # of lists and objects that are written as text at once
_MAX_ARGUMENT = 1_000_000  # a whole number that a function gets: a width, a count, a precision
_WIDE = re.compile(r"\d{6,}")  # in a format: a width or a precision
_SIZED = (str, list, tuple, dict)
# They make text out of nothing, or run regular expressions over what they get.
# Filters and functions that write a value of any shape as text.
_WRITERS = ("_tojson", "soft_str", "do_join", "join", "do_format", "format", "do_list", "do_replace", "do_string")
_REMOVED_FILTERS = ("urlize", "random", "pprint")
_REMOVED_GLOBALS = ("lipsum",)


class TemplateTooLong(SecurityError):
    """A template did more than its budget allows."""


class _Spent(threading.local):
    """Of the rendering that this thread does."""

    operations = 0
    deadline = float("inf")


class BudgetEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with a budget for whatever runs `within_budget`. max_operations, max_seconds: of one rendering."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, *args: Any, max_operations: int = MAX_OPERATIONS, max_seconds: float = MAX_SECONDS, **kw: Any):
        super().__init__(*args, **kw)
        self.max_operations, self.max_seconds = max_operations, max_seconds
        self._spent = _Spent()
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        self.finalize = self._finalize

    def limit_filters(self) -> None:
        """To be called when all filters and tests are there."""
        for table in (self.filters, self.tests):
            found: dict[str, Any] = dict(table)
            table.update({name: self._limited(function) for name, function in found.items()})

    def _limited(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # with the marks by which Jinja knows what a filter wants to be given
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            _check_arguments(function, args, kwargs)
            return function(*args, **kwargs)

        return limited

    def _finalize(self, value: Any) -> Any:
        """What an output expression gives."""
        _weigh(value)
        return value

    def concat_texts(self, *values: Any) -> str:
        """The operator ~, which Jinja does not let a sandbox see."""
        self.tick()
        _check_length(sum(map(_weigh, values)))
        return "".join(map(str, values))

    # -- the budget -----------------------------------------------------------------------------------------------

    @contextmanager
    def within_budget(self) -> Iterator[None]:
        spent = self._spent
        spent.operations, spent.deadline = 0, time.monotonic() + self.max_seconds
        try:
            yield
        finally:
            spent.deadline = float("inf")

    def tick(self) -> str:
        """Counts an operation. Raises TemplateTooLong."""
        spent = self._spent
        spent.operations += 1
        if spent.operations > self.max_operations:
            raise TemplateTooLong(f"it does more than {self.max_operations} operations")
        if time.monotonic() > spent.deadline:
            raise TemplateTooLong(f"it takes longer than {self.max_seconds:g} s")
        return ""

    # -- where it is spent ----------------------------------------------------------------------------------------

    def compile_template(self, source: str) -> jinja2.Template:
        """As `from_string`, with an operation at the beginning of every round of a loop and of every macro."""
        tree = self.parse(source)
        loops: Any = tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock))
        for node in list(loops):
            node.body.insert(0, _tick_node(node.lineno))
        for concat in list(tree.find_all(nodes.Concat)):
            call = nodes.Call(nodes.EnvironmentAttribute("concat_texts"), concat.nodes, [], None, None)
            call.set_lineno(concat.lineno)
            concat.nodes = [call]
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None), None)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.tick()
        _check_arguments(obj, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def limited(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__)
            longest = max(map(_weigh, (*args, *kwargs.values())), default=0)
            _check_length(len(value.__self__) + value.__self__.count("{") * longest)
            return str(wrapped(*args, **kwargs))

        return limited

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _tick_node(line: int) -> nodes.Node:
    # As an expression statement: it writes nothing, and a variable of a template cannot take its place.
    call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Raises TemplateTooLong for an operator whose result would be huge."""
    if operator == "*":
        for value, count in ((left, right), (right, left)):
            if isinstance(value, _SIZED) and isinstance(count, int):
                _check_length(len(value) * max(0, count))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(0, right))
    elif operator == "+" and isinstance(left, _SIZED) and isinstance(right, _SIZED):
        _check_length(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        _check_format(left)
        values = right if isinstance(right, tuple) else tuple(right.values()) if isinstance(right, dict) else (right,)
        for value in values:
            _check_number(value)
        _check_length(len(left) * 2 + left.count("%") * max((_length(value) for value in values), default=0))


def _check_arguments(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises TemplateTooLong for a call whose result could be huge."""
    name = getattr(function, "__name__", "")
    given = (*args, *(value for key, value in kwargs.items() if not key.startswith("_")))
    for value in given:
        _check_number(value)
    if name in _WRITERS:
        _check_length(sum(map(_weigh, given)))
    owner = getattr(function, "__self__", None)
    subject = owner if isinstance(owner, str) else next((value for value in given if isinstance(value, str)), "")
    texts = [value for value in given if isinstance(value, str) and value is not subject]
    longest = max((len(text) for text in texts), default=0)
    if name in ("replace", "do_replace", "translate", "indent", "do_indent", "wordwrap", "do_wordwrap"):
        maps = [value for value in given if isinstance(value, dict)]
        longest = max([longest, *(_length(item) for found in maps for item in found.values())])
        numbers = max((value for value in given if isinstance(value, int)), default=0)
        _check_length((len(subject) + 1) * (max(longest, numbers if "indent" in name else 0) + 1))
    elif name in ("join", "do_join"):
        items = next((value for value in given if isinstance(value, list | tuple)), ())
        _check_length(sum(map(_length, items)) + len(items) * max(longest, len(subject)))
    elif name == "do_format":
        _check_format(subject)
        _check_length(len(subject) * 2 + subject.count("%") * longest)
    elif name == "expandtabs":
        width = max((value for value in args if isinstance(value, int)), default=8)
        _check_length(len(subject) * max(1, width))


def _check_number(value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > _MAX_ARGUMENT:
        raise TemplateTooLong(f"a function gets a number above {_MAX_ARGUMENT}")


def _check_format(text: str) -> None:
    if _WIDE.search(text):
        raise TemplateTooLong("a format asks for more than 99999 characters")


def _check_length(length: int) -> None:
    if length > MAX_LENGTH:
        raise TemplateTooLong(f"an operation would make {length} characters or items; at most {MAX_LENGTH} are allowed")


def _check_bits(bits: int) -> None:
    if bits > MAX_NUMBER_BITS:
        raise TemplateTooLong(f"a number would have {bits} bits; at most {MAX_NUMBER_BITS} are allowed")


def _weigh(value: Any) -> int:
    """About the length of a value as text. A few lists inside each other, each there twice, can be endless text."""
    if isinstance(value, str):
        return len(value)
    weight, left, items = 0, [value], 0
    while left:
        found = left.pop()
        items += 1
        if items > MAX_ITEMS:
            raise TemplateTooLong(f"it writes a value of more than {MAX_ITEMS} parts")
        weight += len(found) + 4 if isinstance(found, str) else 8
        _check_length(weight)
        if isinstance(found, list | tuple):
            left.extend(found)
        elif isinstance(found, dict):
            left.extend(found)
            left.extend(found.values())
    return weight


def _length(value: Any) -> int:
    return len(value) if isinstance(value, _SIZED) else 20
