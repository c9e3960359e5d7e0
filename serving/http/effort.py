"""How much a model reasons, as requests say it and as chat templates take it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jaxinfer.errors import ChatTemplateError, InvalidRequest
from jaxinfer.text import Tokenizer
from jaxinfer.text.answers import OutputParserNames
from serving.http import ignored
from serving.http.models import EFFORTS
from serving.request import ModelContext

EFFORT, THINKING = "reasoning_effort", "enable_thinking"  # as templates call them
HARMONY_EFFORTS = ("low", "medium", "high")  # that the models were trained with
# Variables of chat templates that turn reasoning on and off: Qwen's and GLM's, and Granite's and DeepSeek's.
_SWITCHES = (THINKING, "thinking")
# Where a template does not know an effort, it gets the next one that it may know.
_NEAREST: Mapping[str, tuple[str, ...]] = {
    "none": ("none", "minimal", "low"),
    "minimal": ("minimal", "low"),
    "xhigh": ("xhigh", "high"),
    "max": ("max", "xhigh", "high"),
}


def with_effort(
    variables: Mapping[str, Any] | None, name: str, effort: str | None, context: ModelContext, form: OutputParserNames
) -> dict[str, Any]:
    """The variables of the chat template, with the effort that the request's field `name` asks for, or the nearest that
    the template takes, and whether to reason at all, as far as the template reads them. An effort that is not taken as
    it is gets reported. Raises InvalidRequest."""
    known = dict(variables or {})
    if effort is None:
        return known
    if effort not in EFFORTS:
        raise InvalidRequest(name, effort, f"it must be {', '.join(EFFORTS[:-1])} or {EFFORTS[-1]}")
    if known.get(EFFORT, effort) != effort:
        raise InvalidRequest(name, effort, f"chat_template_kwargs has the {EFFORT} {known[EFFORT]!r}; give one of them")
    tokenizer = context.tokenizer
    taken = None if tokenizer is None else known_effort(tokenizer, effort, harmony=form.is_harmony)
    meant: dict[str, Any] = {} if taken is None else {EFFORT: taken}
    if template_reads(THINKING, tokenizer):
        meant[THINKING] = effort != "none"
    if not meant:
        why = f"the model's chat template reads no {EFFORT} and no {THINKING}"
        ignored.without_effect(name, effort, why)
    elif taken not in (effort, None):
        ignored.without_effect(name, effort, f"the model knows no such effort: the nearest is {taken}")
    return {**meant, **known}


def template_reads(name: str, tokenizer: Tokenizer | None) -> bool:
    """Whether one of the model's chat templates has the variable."""
    source = None if tokenizer is None else tokenizer.chat_template
    sources = source.values() if isinstance(source, dict) else (source or "",)
    return any(name in template for template in sources)


@lru_cache(maxsize=64)
def known_effort(tokenizer: Tokenizer, effort: str, *, harmony: bool = False) -> str | None:
    """The effort as the chat template takes it: itself, or the nearest that it does not refuse; None where it reads
    none, or refuses them. harmony: the model is one that answers in channels."""
    if not template_reads(EFFORT, tokenizer):
        return None
    candidates = [each for each in _NEAREST.get(effort, (effort,)) if not harmony or each in HARMONY_EFFORTS]
    if _beginning(tokenizer) is None:  # it wants more than a question, and cannot be asked
        return candidates[0]
    found = (each for each in candidates if _beginning(tokenizer, reasoning_effort=each) is not None)
    return next(found, None)


@lru_cache(maxsize=8)
def thinking_switch(tokenizer: Tokenizer) -> str | None:
    """The variable with which the chat template turns reasoning on and off: what it writes says so."""
    for name in _SWITCHES:
        on, off = (_beginning(tokenizer, **{name: value}) for value in (True, False))
        if on is not None and off is not None and on != off:
            return name
    return None


def _beginning(tokenizer: Tokenizer, **variables: Any) -> str | None:
    """How a conversation begins with these variables; None where the template refuses them."""
    try:
        return tokenizer.render_chat([{"role": "user", "content": "?"}], **variables)
    except ChatTemplateError:
        return None
