"""A budget for chat templates, which are programs: how much they may do, and how long they may take.

What a template does is counted where it happens: every round of a loop, every call of a function, method, macro, filter
or test, every operator. Nothing else takes time in a template, so a budget of operations ends any of them, and at the
same point each time, whatever else the machine does. Work that grows with the sizes of values (comparing long texts,
sorting) is caught by the clock, which is read at every operation. One operation cannot be interrupted; those that make
much out of little (repetition, powers, padding, formatting, replacing) are judged by their operands before they run
(see template_operands.py), and nothing else is: what a template may do with large numbers is transformers' to say.

Why not a process that is killed after a time: it would cost every chat a copy of its messages and two switches of
process, and the answer to one request would depend on how busy the machine is. The templates are the model's own
(clients send none); what clients send are the values.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.nodes import EvalContext
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxinfer.text import template_operands as operands
from jaxinfer.text.template_operands import TemplateTooLong

MAX_OPERATIONS = 2_000_000
MAX_SECONDS = 5.0
# They make text out of nothing, or run regular expressions over what they get.
_REMOVED_FILTERS = ("urlize", "random", "pprint")
_REMOVED_GLOBALS = ("lipsum",)
_JINJAS_OWN = ("_loop_vars", "_block_vars")  # among a call's arguments, and not for what is called
_GIVEN = (jinja2.Environment, EvalContext, Context)  # what Jinja hands to a filter before its value


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
        filters: dict[str, Any] = dict(self.filters)
        tests: dict[str, Any] = dict(self.tests)
        self.filters.update({name: self._limited(f, operands.FILTERS.get(name)) for name, f in filters.items()})
        # No test makes anything.
        self.tests.update({name: self._limited(f, None) for name, f in tests.items()})

    def _limited(self, function: Callable[..., Any], judge: Callable[..., None] | None) -> Callable[..., Any]:
        @functools.wraps(function)  # with the marks by which Jinja knows what a filter wants to be given
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            if judge is not None:
                operands.check_call(judge, args[1:] if args and isinstance(args[0], _GIVEN) else args, kwargs)
            return function(*args, **kwargs)

        return limited

    def _finalize(self, value: Any) -> Any:
        """What an output expression gives."""
        operands.weigh(value)
        return value

    def concat_texts(self, *values: Any) -> str:
        """The operator ~, which Jinja does not let a sandbox see."""
        self.tick()
        operands.check_length(sum(map(operands.weigh, values)))
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
        self._check_call(obj, args, kwargs)
        return super().call(context, obj, *args, **kwargs)

    def _check_call(self, obj: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        kwargs = {key: value for key, value in kwargs.items() if key not in _JINJAS_OWN}
        name = getattr(obj, "__name__", "")
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, type):  # a method taken off its type, which gets the value as its first argument
            operands.check_call(operands.METHODS.get(name), args, kwargs)
        elif owner is not None and isinstance(name, str):
            operands.check_call(operands.METHODS.get(name), (owner, *args), kwargs)
        else:
            operands.check_call(operands.FUNCTIONS.get(name) if isinstance(name, str) else None, args, kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        judge = operands.METHODS[value.__name__]

        def limited(*args: Any, **kwargs: Any) -> str:
            operands.check_call(judge, (value.__self__, *args), kwargs)
            return str(wrapped(*args, **kwargs))

        return limited

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        operands.check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)


def _tick_node(line: int) -> nodes.Node:
    # As an expression statement: it writes nothing, and a variable of a template cannot take its place.
    call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
    return nodes.ExprStmt(call).set_lineno(line)
