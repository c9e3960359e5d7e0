"""Chat templates end: whatever they try, they are refused within their budget, and honest ones never notice it."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from jaxinfer.text import ChatTemplateError
from jaxinfer.text.chat import ChatTemplates
from jaxinfer.text.template_environment import make_environment

ONE = [{"role": "user", "content": "hi"}]


def render(template: str, messages: Any = ONE, **budget: Any) -> str:
    chats = ChatTemplates(source=None, where="here", environment=make_environment(**budget))
    return chats.render(
        messages, add_generation_prompt=False, tools=None, template=template, variables={}, special_tokens={}
    )


LONG_LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = "
HOSTILE = [
    LONG_LOOP,
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for a in [1] recursive %}{% for i in range(9999) %}{{ loop([1]) if false }}{% endfor %}{% endfor %}"
    + LONG_LOOP,
    "{{ 'x' * 10 ** 9 }}",
    "{{ 10 ** 9 * 'x' }}",
    "{{ [1] * 10 ** 10 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{% set n = namespace(x=3) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}{{ n.x }}",
    DOUBLING + "n.x ~ n.x %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "n.x + n.x %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "n.x | replace('a', n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "n.x.replace('a', n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "[n.x, n.x] | join(n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "n.x.join([n.x, n.x]) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "'%s%s' % (n.x, n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "'%s%s' | format(n.x, n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "'{0}{0}'.format(n.x) %}{% endfor %}{{ n.x | length }}",
    DOUBLING + "[n.x, n.x] %}{% endfor %}{{ n.x }}",
    DOUBLING + "[n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    DOUBLING + "[n.x, n.x] %}{% endfor %}{{ n.x | string }}",
    DOUBLING + "[n.x, n.x] %}{% endfor %}{{ n.x ~ '' }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '%*d' % (10 ** 9, 1) }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ 'x'.zfill(width=10 ** 9) }}",
    "{{ 'x' | center(10 ** 9) }}",
    "{{ ('a\n' * 10000) | indent(100000) }}",
    "{{ ('\t' * 1000000).expandtabs(1000000) }}",
    "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "{{ {} | tojson(indent=10 ** 9) }}",
    "{{ lipsum(n=10 ** 6) }}",
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("template", HOSTILE)
def test_it_ends_soon_and_small(template: str) -> None:
    tracemalloc.start()
    began = time.monotonic()
    try:
        with pytest.raises(ChatTemplateError):
            render(template, max_operations=20_000)
        assert tracemalloc.get_traced_memory()[1] < 1 << 29
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20  # seconds where it would be for ever


def test_the_same_work_is_refused_at_the_same_point() -> None:
    loop = "{% for i in range(100) %}{{ i }}{% endfor %}"
    needed = next(n for n in range(1, 2000) if _fits(loop, n))
    assert 100 <= needed <= 300
    assert all(not _fits(loop, n) for n in range(1, needed, 7))
    with pytest.raises(ChatTemplateError, match=f"it does more than {needed - 1} operations"):
        render(loop, max_operations=needed - 1)


def _fits(template: str, operations: int) -> bool:
    try:
        render(template, max_operations=operations)
    except ChatTemplateError:
        return False
    return True


def test_slow_operations_are_caught_by_the_clock() -> None:
    text = "x" * 2_000_000
    template = "{% for i in range(99999) %}{% if 'y' in messages[0].content %}{% endif %}{% endfor %}"
    with pytest.raises(ChatTemplateError, match=r"it takes longer than 0.1 s"):
        render(template, [{"role": "user", "content": text}], max_seconds=0.1)


def test_an_honest_template_has_room() -> None:
    """The longest conversation that a request may hold, in a template that does much for each message."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' and loop.index0 % 2 == 0 %}<u>{{ m.content | trim }}</u>"
        "{% else %}{{ '<' ~ m['role'] ~ '>' + m.content.strip().split('x')[-1] + '</a>\n' }}{% endif %}{% endfor %}"
    )
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": f" text {i} "} for i in range(4096)]
    text = render(template, messages)
    assert text.startswith("<u>text 0</u><assistant>t 1</a>\n")
    assert text.count("<u>") == 2048


def test_a_budget_is_for_one_rendering() -> None:
    chats = ChatTemplates(source=None, where="here", environment=make_environment(max_operations=300))
    for _ in range(10):
        chats.render(
            ONE,
            add_generation_prompt=False,
            tools=None,
            template="{% for i in range(100) %}{% endfor %}",
            variables={},
            special_tokens={},
        )


def test_a_template_cannot_take_the_place_of_the_count() -> None:
    for name in ("tick", "environment", "concat_texts", "_tick"):
        with pytest.raises(ChatTemplateError, match=r"more than 20000 operations|undefined|not safely"):
            render("{% set " + name + " = dict %}" + LONG_LOOP, max_operations=20_000)
