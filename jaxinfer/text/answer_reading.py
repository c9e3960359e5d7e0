"""How the answers to a prompt are read: by the model's format, and where the prompt leaves them."""

from __future__ import annotations

from collections.abc import Collection

from jaxinfer.text.answers import OutputParserNames, output_parser_names
from jaxinfer.text.stopping import AnswerReading
from jaxinfer.text.tokenizer import Tokenizer

_PROMPT_END = 16  # tokens at the end of a prompt in which an opened reasoning is looked for


def answer_reading(
    form: OutputParserNames, tools: Collection[str] | None, tokenizer: Tokenizer, prompt: tuple[int, ...]
) -> AnswerReading:
    """How answers to this prompt are read. tools: name -> the parameters' JSON schema."""
    end, turn = end_of_prompt(form, tokenizer, prompt)
    return AnswerReading(form, tools, form.begun(end, turn=turn), form.over(end))


def reading_by_template(tokenizer: Tokenizer, prompt: tuple[int, ...]) -> AnswerReading:
    """The same where nobody says which format the model has: the one that its chat template shows."""
    return answer_reading(output_parser_names("auto", "auto", tokenizer.chat_template), None, tokenizer, prompt)


def end_of_prompt(form: OutputParserNames, tokenizer: Tokenizer, prompt: tuple[int, ...]) -> tuple[str, bool]:
    """Its text, where reasoning can matter, and whether that is the beginning of the answer's own turn."""
    if form.reasoning == "none":
        return "", False
    end = prompt[-_PROMPT_END:]
    tags = {tokenizer.token_id(mark) for mark in form.marks(tools=False)}
    turn = next(
        (i for i in range(len(end), 0, -1) if tokenizer.is_special(end[i - 1]) and end[i - 1] not in tags), None
    )
    if turn is not None:  # behind the last special token only the answer's own turn stands
        return tokenizer.decode(end[turn:], skip_special_tokens=False), True
    return tokenizer.decode(end, skip_special_tokens=False), False
