"""A budget of reasoning, as a client asks for it, in the format that the model writes."""

from __future__ import annotations

from jaxinfer.errors import InvalidRequest
from jaxinfer.messages import ThinkingBudget
from jaxinfer.text import AnswerReading, Tokenizer
from jaxinfer.text.answer_reading import reading_by_template
from jaxinfer.text.answers.harmony_header import ANALYSIS, CHANNEL, ENDS, START

FIELD = "thinking_token_budget"


def thinking_budget(
    tokens: int | None, reading: AnswerReading | None, tokenizer: Tokenizer | None, prompt: tuple[int, ...]
) -> ThinkingBudget | None:
    """The budget of the answers to a prompt; None where there is none, or where the prompt has closed the reasoning.
    reading: how the answers are read; None where nobody parses them: then the chat template shows the model's format.
    Raises InvalidRequest for a model whose answers have no reasoning that could be told from the rest."""
    if tokens is None or tokenizer is None:
        return None
    reading = reading or reading_by_template(tokenizer, prompt)
    form = reading.form
    if form.tags is None and not form.is_harmony:
        raise InvalidRequest(FIELD, tokens, "this model's answers are not known to have reasoning")
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
