"""Which operands a template is judged by: widths, counts and formats, and no other number or text, however large.

The oracle is the environment in which transformers renders: jinja2's immutable sandbox with the same settings.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from jaxinfer.text import ChatTemplateError
from jaxinfer.text import template_operands as operands
from jaxinfer.text.template_environment import make_environment
from tests.jaxinfer.text.test_template_budget import render

TIME, ID = 1_700_000_000, 10**15 + 7
SHORT = "line of text é <b>\n" * 500
TEXT = SHORT * 100  # about 1 MB


def transformers_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
    return environment


def check_same(template: str, **values: Any) -> None:
    expected = transformers_environment().from_string(template).render(**values)
    environment = make_environment()
    with environment.within_budget():
        assert environment.compile_template(template).render(**values) == expected


# A filter in each row, with a number or a text that is data.
HARMLESS = {
    "abs": "{{ n | abs }}{{ (0 - n) | abs }}",
    "attr": "{{ n | attr('real') }}",
    "capitalize": "{{ t | capitalize }}",
    "count": "{{ t | count }}",
    "d": "{{ missing | d(n) }}",
    "default": "{{ missing | default(n) }}{{ missing | default(t) }}",
    "dictsort": "{{ {'a': n} | dictsort }}",
    "e": "{{ n | e }}{{ t | e }}",
    "escape": "{{ n | escape }}{{ t | escape }}",
    "filesizeformat": "{{ n | filesizeformat }}",
    "first": "{{ [n] | first }}{{ t | first }}",
    "float": "{{ n | float }}{{ 'x' | float(n) }}",
    "forceescape": "{{ t | forceescape }}",
    "groupby": "{% for key, found in [{'k': n}] | groupby('k') %}{{ key }}{% endfor %}",
    "int": "{{ n | int }}{{ 'x' | int(n) }}",
    "items": "{% for k, v in {'a': n} | items %}{{ v }}{% endfor %}",
    "last": "{{ [n] | last }}{{ t | last }}",
    "length": "{{ t | length }}",
    "lower": "{{ t | lower }}",
    "map": "{{ [{'a': n}] | map(attribute='a') | list }}{{ [n] | map('string') | list }}",
    "max": "{{ [n, 1] | max }}",
    "min": "{{ [n, 1] | min }}",
    "reject": "{{ [n, 1] | reject('gt', n - 1) | list }}",
    "rejectattr": "{{ [{'a': n}] | rejectattr('a', 'eq', n) | list }}",
    "reverse": "{{ t | reverse | length }}",
    "safe": "{{ t | safe }}",
    "select": "{{ [n, 1] | select('gt', n - 1) | list }}",
    "selectattr": "{{ [{'a': n}] | selectattr('a', 'eq', n) | list }}",
    "sort": "{{ [n, 1] | sort }}",
    "striptags": "{{ t | striptags }}",
    "title": "{{ t | title }}",
    "trim": "{{ t | trim }}",
    "truncate": "{{ 'short' | truncate(n | abs) }}{{ t | truncate(20) }}",
    "unique": "{{ [n, n] | unique | list }}",
    "upper": "{{ t | upper }}",
    "urlencode": "{{ {'q': n} | urlencode }}{{ t | urlencode }}",
    "wordcount": "{{ t | wordcount }}",
    "xmlattr": "{{ {'id': n} | xmlattr }}",
}
# Those that have a width or a count, with numbers and texts that are none.
JUDGED = {
    "batch": "{% for row in [n, 1, 2] | batch(2, n) %}{{ row }}{% endfor %}{{ [1] | batch(n) | list }}",
    "center": "{{ n | string | center(30) }}{{ t | center(9) }}",
    "format": "{{ 'at %d: %s' | format(n, n) }}{{ 'order 12345678 of %s' | format(t) }}",
    "indent": "{{ t | indent(4) }}{{ t | indent('> ', first=true) }}",
    "join": "{{ [n, n] | join('-') }}{{ [t, t] | join(t) }}",
    "list": "{{ [n] | list }}{{ t | list | length }}",
    "replace": "{{ t | replace('line', 'another line') }}{{ t | replace('é', 'e' * 200, 2) }}{{ n | replace(1, 2) }}",
    "round": "{{ n | round }}{{ 2.5e9 | round(2) }}{{ 1.25 | round(1, 'ceil') }}",
    "slice": "{% for row in [n, 1] | slice(2, n) %}{{ row }}{% endfor %}",
    "string": "{{ n | string }}{{ t | string }}",
    "sum": "{{ [n, n] | sum }}{{ [n] | sum(start=n) }}",
    "tojson": "{{ n | tojson }}{{ {'t': n, 'x': t} | tojson(indent=2) }}{{ [n] | tojson(separators=(',', ':')) }}",
    "wordwrap": "{{ 'a few words' | wordwrap(n | abs) }}{{ ('a b ' * 9000) | wordwrap(40) }}",
}


@pytest.mark.parametrize("name", sorted(HARMLESS | JUDGED))
def test_filters_take_large_data_as_transformers_does(name: str) -> None:
    for number in (TIME, ID, -TIME):
        check_same((HARMLESS | JUDGED)[name], n=number, t=TEXT if name in JUDGED and number == TIME else SHORT)


def test_every_filter_is_known() -> None:
    assert set(make_environment().filters) == set(HARMLESS) | set(JUDGED)
    assert set(operands.FILTERS) == set(JUDGED)


def test_tests_take_every_number() -> None:
    arguments = {"divisibleby": "(n)", "in": "([n])", "filter": "", "test": ""}
    compared = (
        "eq",
        "equalto",
        "==",
        "ne",
        "!=",
        "gt",
        ">",
        "greaterthan",
        "ge",
        ">=",
        "lt",
        "<",
        "lessthan",
        "le",
        "<=",
    )
    environment = make_environment()
    for name in environment.tests:
        if not name.isidentifier():
            template = f"{{{{ [n] | select('{name}', n) | list }}}}"
        elif name in compared or name == "sameas":
            template = f"{{{{ n is {name}(n) }}}}"
        else:
            template = f"{{{{ n is {name}{arguments.get(name, '')} }}}}"
        if name in ("filter", "test"):
            template = template.replace("n is", "'abs' is")
        if name in ("lower", "upper"):
            template = template.replace("n is", "t is")
        check_same(template, n=TIME, t=SHORT)
    check_same("{{ n == 1700000000 }}{{ 1700000001 in [n + 1] }}{{ n // 60 * 60 }}{{ n % 86400 }}", n=TIME)


# Methods that make no more than their operands together, or a few times that.
PLAIN_METHODS = {
    str: "capitalize casefold count encode endswith find index isalnum isalpha isascii isdecimal isdigit isidentifier "
    "islower isnumeric isprintable isspace istitle isupper lower lstrip maketrans partition removeprefix removesuffix "
    "rfind rindex rpartition rsplit rstrip split splitlines startswith strip swapcase title upper",
    bytes: "capitalize count decode endswith find fromhex hex index isalnum isalpha isascii isdigit islower isspace "
    "istitle isupper lower lstrip maketrans partition removeprefix removesuffix rfind rindex rpartition rsplit rstrip "
    "split splitlines startswith strip swapcase title upper",
    int: "as_integer_ratio bit_count bit_length conjugate denominator from_bytes imag is_integer numerator real",
    float: "as_integer_ratio conjugate fromhex from_number hex imag is_integer real",
    list: "append clear copy count extend index insert pop remove reverse sort",
    tuple: "count index",
    dict: "clear copy fromkeys get items keys pop popitem setdefault update values",
    range: "count index start step stop",
}


@pytest.mark.parametrize("kind", PLAIN_METHODS, ids=lambda kind: kind.__name__)
def test_every_method_is_known(kind: type) -> None:
    found = {name for name in dir(kind) if not name.startswith("_")}
    assert found - set(operands.METHODS) <= set(PLAIN_METHODS[kind].split())
    assert not set(operands.METHODS) & set(PLAIN_METHODS[kind].split())


@pytest.mark.parametrize(
    "template",
    [
        "{{ t.replace('line', 'another line') }}{{ t.replace('é', 'e' * 500, 3) }}",
        "{{ '{} at {}'.format(n, n) }}{{ 'order 12345678: {}'.format(t) }}{{ '{:,}'.format(n) }}",
        "{{ '{0:>{1}}'.format(1, 9) }}",
        "{{ 'order 12345678: %s, %5.2f' % (t, 2) }}{{ '%(a)s' % {'a': n} }}{{ '%d' % n }}{{ '%*d' % (9, 5) }}",
        "{{ 'a\tb'.expandtabs(4) }}{{ 'x'.ljust(20) }}{{ 'x'.zfill(9) }}{{ t.center(3) }}{{ '-'.join([t, t]) }}",
        "{{ t.split('\n', n) | length }}{{ t.count('é', 0, n) }}{{ t.find('zz', 5, n) }}{{ t[:20] }}{{ t[n:] }}",
        "{{ n.bit_length() }}{{ n.to_bytes(8, 'big') | length }}{{ {'a': n}.get('b', n) }}{{ [n].index(n) }}",
        "{% macro f(a, b=5) %}{{ a + b }}{% endmacro %}{{ f(n) }}{{ f(n, b=n) }}{{ dict(a=n) }}{{ namespace(a=n).a }}",
        "{% set c = cycler(n, 1) %}{{ c.next() }}{% for i in range(3) %}{{ loop.cycle(n, 2) }}{% endfor %}",
    ],
)
def test_calls_take_large_data_as_transformers_does(template: str) -> None:
    check_same(template, n=TIME, t=TEXT)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' | center(2000000) }}",
        "{{ 'x'.rjust(2000000) }}",
        "{{ 'x'.encode() * 10 ** 9 }}",
        "{{ 'x'.encode().ljust(10 ** 9) | length }}",
        "{{ (1).to_bytes(10 ** 9, 'big') | length }}",
        "{{ 1.5 | round(10 ** 8, 'ceil') }}",
        "{{ 5 | round(0 - 10 ** 8) }}",
        "{{ [1] | slice(10 ** 9) | list | length }}",
        "{{ [1] | batch(10 ** 9, 'x') | list | length }}",
        "{{ '%*d' % (10 ** 9, 1) }}",
        "{{ '%.*f' | format(10 ** 9, 1) }}",
        "{{ '%(a)1000000000s' % {'a': 1} }}",
        "{{ '{:{}}'.format(1, 10 ** 9) }}",
        "{{ '{0:>{1}}'.format('x', '1000000000') }}",
        "{{ '{0:>{1[0]}}'.format('x', ['1000000000']) }}",
        "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
        "{{ strftime_now('%1000000000d') }}",
        "{{ strftime_now('%50000d' * 5000) }}",
        "{{ ('%50000d' * 5000) | format(1) }}",
        "{{ ('%(a)50000d' * 5000) % {'a': 1} }}",
        "{{ ('%*d' * 5000) % ((50000, 1) * 5000) }}",
        "{{ ('{0:50000}' * 5000).format(1) }}",
        "{{ ('{0:{1}}' * 5000).format(1, 50000) }}",
        "{{ ('{0:{1}}' * 5000).format('x', '50000') }}",
        "{{ ('ab' * 1000).replace('', 'x' * 1000000) }}",
        "{{ 'x'.join(['y' * 40000000, 'z' * 40000000]) }}",
        "{{ [[1, [2, [3]]]] | tojson(indent=2000000) }}",
        "{{ ([1] * 90000) | tojson(indent=900) }}",
        "{{ (['x'] * 90000) | tojson(separators=('y' * 900, ':')) }}",
        "{{ ([[1] * 10000] * 10000) | sum(start=[]) | length }}",
        "{{ [1, 2] | map('center', 10 ** 9) | list }}",
        "{{ ('a b ' * 90000) | wordwrap(1, wrapstring='x' * 90000) }}",
    ],
)
def test_what_makes_much_out_of_little_is_refused(template: str) -> None:
    with pytest.raises(ChatTemplateError, match=r"at most|above|a format asks|more than"):
        render(template)


def test_a_value_that_is_there_twice_counts_twice() -> None:
    value: Any = "ab"
    for _ in range(200):
        value = [value, value]
    with pytest.raises(operands.TemplateTooLong):
        operands.weigh(value)
    assert operands.weigh([["ab", 1], {"k": ["ab"]}]) == 8 + (8 + 6 + 8) + (8 + 5 + (8 + 6))
    deep: Any = 1
    for _ in range(10_000):
        deep = [deep]
    assert operands.weigh(deep) == 8 * 10_001


def test_a_template_may_write_the_longest_values_that_a_request_can_hold() -> None:
    messages = [{"role": "user", "content": "x" * 15_000_000}]
    assert len(render("{{ messages | tojson }}", messages)) > 15_000_000
    calls = [{"id": "a", "function": {"name": "f", "arguments": {"rows": list(range(300_000))}}}]
    text = render("{{ messages[0].tool_calls | tojson }}", [{"role": "assistant", "content": "", "tool_calls": calls}])
    assert text == json.dumps(calls)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", ["%(", "{", "%", "{12345", "%12345"])
def test_formats_of_megabytes_are_judged_in_one_pass(text: str) -> None:
    """Whatever they say of it: an expression that goes back and forth would take hours."""
    for how in ("{{ (t * 100000) | format(1) }}", "{{ (t * 100000).format(1) }}", "{{ strftime_now(t * 100000)[:9] }}"):
        environment = make_environment()
        with environment.within_budget(), contextlib.suppress(Exception):
            environment.compile_template(how).render(t=text)
