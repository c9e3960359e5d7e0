"""The openai package, 2.x and 3.x: chat, completions and responses, with their helpers."""

from __future__ import annotations

import json

import openai
import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, TOOL, case, check_weather, finish

client = openai.OpenAI(base_url=DEMO + "/v1", api_key=KEY, max_retries=0)
scripted = openai.OpenAI(base_url=SCRIPTED + "/v1", api_key=KEY, max_retries=0)
MODEL = client.models.list().data[0].id
ASK = [{"role": "user", "content": QUESTION}]
STRICT = [{"type": "function", "function": {**TOOL, "strict": True}}]


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


@case
def models_are_listed_with_their_context():
    (model,) = client.models.list().data
    assert model.max_model_len == 65_536, model  # vLLM's field
    assert client.models.retrieve(model.id).id == model.id


@case
def chat():
    answer = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    assert "933" in answer.choices[0].message.content, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@case
def chat_stream_equals_the_whole():
    whole = client.chat.completions.create(model=MODEL, messages=ASK, temperature=0).choices[0].message.content
    with client.chat.completions.stream(model=MODEL, messages=ASK, temperature=0) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole


@case
async def chat_async():
    asynchronous = openai.AsyncOpenAI(base_url=DEMO + "/v1", api_key=KEY)
    answer = await asynchronous.chat.completions.create(model=MODEL, messages=ASK, temperature=0)
    assert "933" in answer.choices[0].message.content


@case
def completions():
    answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=8, n=2, temperature=1.0, seed=1)
    assert len(answer.choices) == 2


@case
def fields_of_other_servers_are_named_in_the_header():
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_tokens=4, prompt_cache_key="k", safety_identifier="s", service_tier="auto",
        store=True, metadata={"a": "b"}, verbosity="low",
    )  # fmt: skip
    ignored = raw.headers["x-jaxinfer-ignored"]
    # user and safety_identifier have an effect, and "auto" asks for nothing.
    for name in ("prompt_cache_key", "store", "metadata", "verbosity"):
        assert name in ignored, ignored


@case
def a_bad_value_is_a_bad_request():
    try:
        client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    except openai.BadRequestError as error:
        assert error.param == "temperature", error
    else:
        raise AssertionError("temperature -1 was taken")


@case
def parse():
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, response_format=Weather, temperature=1.5, max_tokens=400
    )
    assert isinstance(answer.choices[0].message.parsed, Weather), answer


@case
def parse_while_streaming():
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Weather, temperature=1.5, max_tokens=400
    ) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Weather)


@case
def json_object():
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, max_tokens=600, temperature=0
    )
    choice = answer.choices[0]
    assert choice.finish_reason == "length" or isinstance(json.loads(choice.message.content), dict), answer


@case
def a_required_tool_call():
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=STRICT, tool_choice="required", temperature=1.0, max_tokens=400
    )
    (call,) = answer.choices[0].message.tool_calls[:1]
    assert call.function.name == TOOL["name"]
    check_weather(call.function.arguments)


@case
def a_named_tool_call_while_streaming():
    named = {"type": "function", "function": {"name": TOOL["name"]}}
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=STRICT, tool_choice=named, temperature=1.0, max_tokens=400
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    check_weather(call.function.arguments)


@case
def a_tool_loop():
    messages = [*ASK]
    answer = scripted.chat.completions.create(model=scripted.models.list().data[0].id, messages=messages, tools=STRICT)
    message = answer.choices[0].message
    messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "rain"}]
    answer = scripted.chat.completions.create(model=answer.model, messages=messages, tools=STRICT)
    assert answer.choices[0].message.content == "done"


@case
def responses():
    answer = client.responses.create(model=MODEL, input=QUESTION, temperature=0)
    assert "933" in answer.output_text
    with client.responses.stream(model=MODEL, input=QUESTION, temperature=0) as stream:
        assert stream.get_final_response().output_text == answer.output_text


@case
def responses_parse():
    answer = client.responses.parse(model=MODEL, input=QUESTION, text_format=Weather, max_output_tokens=400)
    assert isinstance(answer.output_parsed, Weather), answer


@case
def responses_remember():
    first = client.responses.create(model=MODEL, input=QUESTION, temperature=0, store=True)
    assert client.responses.retrieve(first.id).output_text == first.output_text
    second = client.responses.create(
        model=MODEL, input="And 1 + 1?", previous_response_id=first.id, max_output_tokens=9
    )
    assert second.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted response was found")


@case
def a_tool_loop_of_responses():
    tools = [{"type": "function", **TOOL, "strict": True}, {"type": "web_search"}]
    items = [{"role": "user", "content": QUESTION}]
    model = scripted.models.list().data[0].id
    answer = scripted.responses.create(model=model, input=items, tools=tools)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    items += [item.to_dict() for item in answer.output]
    items.append({"type": "function_call_output", "call_id": call.call_id, "output": "rain"})
    assert scripted.responses.create(model=model, input=items, tools=tools).output_text == "done"


finish()
