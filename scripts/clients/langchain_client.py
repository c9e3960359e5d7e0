"""langchain-openai: chat, streams, structured output, tools."""

from __future__ import annotations

import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, TOOL, case, check_weather, finish
from langchain_openai import ChatOpenAI

model = ChatOpenAI(model="demo", base_url=DEMO + "/v1", api_key=KEY, temperature=0, max_tokens=400, max_retries=0)
scripted = ChatOpenAI(model="any", base_url=SCRIPTED + "/v1", api_key=KEY, max_retries=0)


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


@case
def invoke_and_stream():
    assert "933" in model.invoke(QUESTION).content
    assert "933" in "".join(part.content for part in model.stream(QUESTION))


@case
def structured_output():
    for method in ("json_schema", "function_calling"):
        assert isinstance(model.with_structured_output(Weather, method=method).invoke(QUESTION), Weather), method


@case
def the_responses_interface():
    other = ChatOpenAI(model="demo", base_url=DEMO + "/v1", api_key=KEY, use_responses_api=True, temperature=0)
    assert "933" in str(other.invoke(QUESTION).content)


@case
def a_tool_loop():
    bound = scripted.bind_tools([Weather], strict=True)
    answer = scripted.bind_tools([{"type": "function", "function": TOOL}]).invoke(QUESTION)
    check_weather(answer.tool_calls[0]["args"])
    result = {"role": "tool", "tool_call_id": answer.tool_calls[0]["id"], "content": "rain"}
    assert bound.invoke([("user", QUESTION), answer, result]).content == "done"


finish()
