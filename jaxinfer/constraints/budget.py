"""A budget of reasoning, as a client asks for it, in the format that the model writes."""

from __future__ import annotations

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import ThinkingBudget
from jaxinfer.text import AnswerReading, Tokenizer
from jaxinfer.text.answers.harmony_header import ANALYSIS, CHANNEL, ENDS, START

FIELD = "thinking_token_budget"
MAX_BUDGET = 1 << 31


def thinking_budget(tokens: int | None, reading: AnswerReading | None, tokenizer: Tokenizer) -> ThinkingBudget | None:
    """The budget of the answers to a prompt; None where there is none, or where the prompt has closed the reasoning.
    reading: how the answers are read; None where nobody parses them. Raises InvalidRequest for a model whose answers
    have no reasoning that could be told from the rest."""
    if tokens is None:
        return None
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 <= tokens < MAX_BUDGET:
        raise InvalidRequest(FIELD, tokens, f"it must be an integer from 0 to {MAX_BUDGET - 1}")
    form = None if reading is None else reading.form
    if reading is None or form is None or (form.tags is None and not form.is_harmony):
        raise InvalidRequest(FIELD, tokens, "this model's answers are not known to have reasoning (--reasoning-parser)")
    if reading.over:
        return None
    if form.is_harmony:
        opens: tuple[str, ...] = (CHANNEL + ANALYSIS,)
        closes: tuple[str, ...] = ENDS
        closing: tuple[str, ...] = (ENDS[0], START, "assistant", CHANNEL)
    else:
        assert form.tags is not None
        opens, closes, closing = form.tags.opens, form.tags.closes, (form.tags.close,)
    return ThinkingBudget(
        tokens,
        reading.begun,
        tuple(tag.encode() for tag in opens),
        tuple(tag.encode() for tag in closes),
        tuple(token for text in closing for token in _within(text, tokenizer)),
        CHANNEL.encode() if form.is_harmony else b"",
    )


def _within(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens that spell a tag behind other text."""
    token = tokenizer.token_id(text)
    return [token] if token is not None else tokenizer.encoder_within()(text)
