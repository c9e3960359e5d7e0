"""The anthropic package: messages, tools, streams and the counting of tokens."""

from __future__ import annotations

import time

import anthropic
from cases import DEMO, KEY, QUESTION, SCRIPTED, TOOL, WEATHER, case, check_weather, finish

client = anthropic.Anthropic(base_url=DEMO, api_key=KEY, max_retries=0)
scripted = anthropic.Anthropic(base_url=SCRIPTED, api_key=KEY, max_retries=0)
GREEDY = {"temperature": 0}  # 2.x has no argument for it
ASK = [{"role": "user", "content": QUESTION}]
TOOLS = [{"name": TOOL["name"], "description": TOOL["description"], "input_schema": WEATHER}]


@case
def messages():
    answer = client.messages.create(model="demo", messages=ASK, max_tokens=100, extra_body=GREEDY)
    assert "933" in answer.content[0].text
    assert answer.stop_reason == "end_turn", answer
    assert min(answer.usage.input_tokens, answer.usage.output_tokens) > 0


@case
def a_stream_equals_the_whole():
    whole = client.messages.create(model="demo", messages=ASK, max_tokens=100, extra_body=GREEDY).content[0].text
    with client.messages.stream(model="demo", messages=ASK, max_tokens=100, extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == whole


@case
async def asynchronous():
    other = anthropic.AsyncAnthropic(base_url=DEMO, api_key=KEY)
    answer = await other.messages.create(model="demo", messages=ASK, max_tokens=100, extra_body=GREEDY)
    assert "933" in answer.content[0].text


@case
def system_blocks_and_limits_beyond_the_context():
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    answer = client.messages.create(model="demo", system=system, messages=ASK, max_tokens=100_000, timeout=60,
                                    extra_body={**GREEDY, "context_management": {}})  # fmt: skip
    assert answer.content[0].text


@case
def marks_pin_a_prompt():
    mark = {"type": "ephemeral", "ttl": "1h"}
    system = [{"type": "text", "text": f"{time.time()}: " + "Be brief and kind. " * 40, "cache_control": mark}]
    first, again = (
        client.messages.create(model="demo", system=system, messages=ASK, max_tokens=1).usage for _ in range(2)
    )
    made = first.cache_creation_input_tokens
    assert made > 0, first
    assert made == first.cache_creation.ephemeral_1h_input_tokens
    assert (first.cache_read_input_tokens, again.cache_creation_input_tokens) == (0, 0)
    assert again.cache_read_input_tokens >= made, again
    marked = [{"type": "text", "text": "Hi.", "cache_control": {"type": "ephemeral"}}]
    try:
        client.messages.create(model="demo", system=system, messages=[{"role": "user", "content": marked * 4}],
                               max_tokens=1)  # fmt: skip
    except anthropic.BadRequestError as error:
        assert "at most 4" in error.message
    else:
        raise AssertionError("five marks were taken")


@case
def stop_sequences():
    answer = client.messages.create(model="demo", messages=ASK, max_tokens=100, extra_body=GREEDY, stop_sequences=["="])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "="), answer


@case
def counting():
    counted = client.messages.count_tokens(model="demo", messages=ASK).input_tokens
    assert counted == client.messages.create(model="demo", messages=ASK, max_tokens=1).usage.input_tokens


@case
def a_forced_tool():
    for choice in ({"type": "any"}, {"type": "tool", "name": TOOL["name"]}):
        answer = client.messages.create(model="demo", messages=ASK, max_tokens=400, tools=TOOLS, tool_choice=choice)
        (call,) = [block for block in answer.content if block.type == "tool_use"][:1]
        check_weather(call.input)
        assert answer.stop_reason == "tool_use"


@case
def a_tool_loop_while_streaming():
    turns = [*ASK]
    with scripted.messages.stream(model="any", messages=turns, max_tokens=900, tools=TOOLS) as stream:
        answer = stream.get_final_message()
    (call,) = [block for block in answer.content if block.type == "tool_use"]
    check_weather(call.input)
    result = {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "rain"}]}
    turns += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    last = scripted.messages.create(model="any", messages=turns, max_tokens=900, tools=TOOLS)
    assert last.content[0].text == "done"


@case
def errors_have_their_classes():
    try:
        client.messages.create(model="demo", messages=ASK, max_tokens=0)
    except anthropic.BadRequestError as error:
        assert error.body["error"]["type"] == "invalid_request_error", error.body
    else:
        raise AssertionError("max_tokens 0 was taken")


@case
def a_tool_runner():
    """It would have the server hold the conversation, and must send the whole of it."""

    @anthropic.beta_tool
    def get_weather(city: str, days: int) -> str:
        """The weather of a city."""
        return f"rain in {city} for {days} days"

    run = scripted.beta.messages.tool_runner(model="any", messages=ASK, max_tokens=400, tools=[get_weather])
    turns = list(run)
    assert [turn.stop_reason for turn in turns] == ["tool_use", "end_turn"], turns
    assert turns[1].content[0].text == "done"
    assert turns[1].usage.input_tokens > turns[0].usage.input_tokens


finish()
