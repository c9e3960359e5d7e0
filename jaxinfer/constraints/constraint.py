"""The one string that crosses to the engine: what a client asks for, in the format that the model writes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxinfer.constraints.answer import answer
from jaxinfer.constraints.arguments import can_be_written
from jaxinfer.constraints.calls import ToolRules, call_messages, calls, functions, text_or_calls
from jaxinfer.constraints.checking import fault_of
from jaxinfer.constraints.grammar import Grammar, TokenOf, either, no_tokens
from jaxinfer.constraints.judge import TOO_COSTLY, one_request
from jaxinfer.constraints.params import StructuredOutputsParams
from jaxinfer.constraints.reasoning import Begun, final_message, in_channels, led, preamble
from jaxinfer.errors import InvalidRequest
from jaxinfer.text import AnswerReading, Tokenizer
from jaxinfer.text.answers import OutputParserNames


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """What an answer consists of besides what is asked for.

    Args:
        form: The formats of the model's reasoning and calls.
        begun: Where the prompt leaves the answer.
        token_of: The token that is spelled exactly so.
    """

    form: OutputParserNames = field(default_factory=OutputParserNames)
    begun: Begun = "not"
    token_of: TokenOf = no_tokens


def constrained(
    params: StructuredOutputsParams | None,
    rules: ToolRules | None,
    reading: AnswerReading | None,
    tokenizer: Tokenizer | None,
) -> tuple[str, AnswerReading | None]:
    """The constraint of the answers to a request, and how they are read under it. reading: None where nobody parses
    them: they are text from their first token on. Raises InvalidRequest as `constraint_of`."""
    if tokenizer is None:
        return "", reading
    with one_request():
        return _constrained(params, rules, reading, tokenizer)


def _constrained(
    params: StructuredOutputsParams | None, rules: ToolRules | None, reading: AnswerReading | None, tokenizer: Tokenizer
) -> tuple[str, AnswerReading | None]:
    if reading is None:
        return constraint_of(params, rules, AnswerShape(token_of=tokenizer.token_id)), None
    begun: Begun = "inside" if reading.begun else "over" if reading.over else "not"
    constraint = constraint_of(params, rules, AnswerShape(reading.form, begun, tokenizer.token_id))
    # Formats make more of arguments than their schemas.
    if constraint and rules is not None and fault_of(constraint) == TOO_COSTLY:
        raise InvalidRequest("tools", "functions", f"no grammar can be made of their calls: {TOO_COSTLY}")
    return constraint, reading._replace(form=reading.form._replace(exact=bool(constraint)))


def constraint_of(params: StructuredOutputsParams | None, rules: ToolRules | None, shape: AnswerShape) -> str:
    """A grammar in llguidance's JSON form, for the whole answer from its first token on; "" where nothing is asked.

    params: what the answer's text must be. rules: what is said of its calls; None where it may have none. Takes
    milliseconds for long schemas, and lets go of the interpreter for part of that. Raises InvalidRequest.
    """
    if params is None and (rules is None or not rules.constrain):
        return ""
    grammar = Grammar(shape.token_of)
    asked = None if params is None or (rules is not None and rules.required) else params
    if shape.form.is_harmony:
        return grammar.result(_in_channels(asked, rules, shape, grammar))
    if rules is None:
        assert asked is not None
        return grammar.result(led(shape.form, shape.begun, answer(asked, grammar), grammar))
    if asked is None:
        expression = _calls(rules, shape.form, grammar)
    else:  # it is the alternative to calls, which must be whole ones then
        forced = replace(rules, required=True)
        expression = either(answer(asked, grammar), _calls(forced, shape.form, grammar))
    return grammar.result(led(shape.form, shape.begun, expression, grammar))


def _calls(rules: ToolRules, form: OutputParserNames, grammar: Grammar) -> str:
    """Calls where they are required, else text or calls. For formats of tags."""
    spelling = form.spelling
    if spelling is None or not can_be_written(spelling):
        asked = ("tool_choice", "required") if rules.required else ("tools", "strict")
        raise InvalidRequest(*asked, f"no grammar can be made of calls in the model's format, {form.tool_calls}")
    allowed = functions(rules)
    if rules.required:
        return calls(spelling, allowed, grammar, single=rules.single)
    return text_or_calls(spelling, form.call_tags, allowed, grammar, single=rules.single)


def _in_channels(
    asked: StructuredOutputsParams | None, rules: ToolRules | None, shape: AnswerShape, grammar: Grammar
) -> str:
    text = grammar.any_text() if asked is None else answer(asked, grammar)
    if shape.begun == "over":
        return text
    is_json = asked is not None and asked.kind in ("json", "json_object")
    last = [] if rules is not None and rules.required else [final_message(text, grammar, is_json=is_json)]
    if rules is not None:
        call = call_messages(functions(rules), grammar)
        last.append(f"({preamble(grammar)})? {call}")
    return in_channels(shape.begun, either(*last), grammar)
