"""What a model may write before its answer: its reasoning, in the format that the parsers of answers know."""

from __future__ import annotations

from typing import Literal

from jaxinfer.constraints.grammar import SPACE, Grammar, either
from jaxinfer.text.answers import OutputParserNames
from jaxinfer.text.answers.harmony_header import ANALYSIS, CHANNEL, CONSTRAIN, ENDS, MESSAGE, START

Begun = Literal["not", "inside", "over"]
"""Where a prompt leaves its answer: the reasoning may come ("not"), is open ("inside"), or is closed already."""

_END = ENDS[0]


def led(form: OutputParserNames, begun: Begun, expression: str, grammar: Grammar) -> str:
    """The expression of the answer itself behind the reasoning, where the model writes any. For formats of tags."""
    tags = form.tags
    if tags is None or begun == "over":
        return expression
    reasoned = f"{grammar.until(tags.closes)} {grammar.terminal(SPACE)}? "
    if tags.answer is None:
        reasoned += expression
    else:
        open_answer, close_answer = map(grammar.text, tags.answer)
        space = grammar.terminal(SPACE) + "?"
        reasoned += either(expression, f"{open_answer} {space} {expression} {space} {close_answer}")
    if begun == "inside":
        return reasoned
    opens = either(*map(grammar.text, tags.opens)) if len(tags.opens) > 1 else grammar.text(tags.open)
    return either(f"{opens} {reasoned}", expression)


def in_channels(begun: Begun, last: str, grammar: Grammar) -> str:
    """Harmony's messages: any of reasoning, then `last`, an expression that begins with its channel. begun "over": the
    prompt has opened the answer's own message, and `last` is that message's text."""
    if begun == "over":
        return last
    next_message = f"{grammar.until((_END,))} {grammar.text(START + 'assistant')}"
    message = grammar.rule(f"{grammar.text(CHANNEL + ANALYSIS + MESSAGE)} {next_message}")
    return f"{next_message if begun == 'inside' else ''} {message}* {last}".strip()


def final_message(expression: str, grammar: Grammar, *, is_json: bool) -> str:
    """Harmony's message for the reader, whose end is the end of the answer."""
    header = grammar.text(CHANNEL + "final")
    kind = f" ({grammar.text(' ' + CONSTRAIN + 'json')})?" if is_json else ""
    return f"{header}{kind} {grammar.text(MESSAGE)} {expression}"


def preamble(grammar: Grammar) -> str:
    """Harmony's message for the reader before a call."""
    return (
        f"{grammar.text(CHANNEL + 'commentary' + MESSAGE)} {grammar.until((_END,))} {grammar.text(START + 'assistant')}"
    )


def call_message(name: str, arguments: str, grammar: Grammar) -> str:
    """Harmony's message that calls a function. Its end is the end of the answer."""
    header = grammar.text(f"{CHANNEL}commentary to=functions.{name} {CONSTRAIN}json{MESSAGE}")
    return f"{header} {arguments}"
