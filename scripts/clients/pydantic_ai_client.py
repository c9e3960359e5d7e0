"""pydantic-ai: an agent with tools, and objects as its output."""

from __future__ import annotations

import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, case, finish
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

demo = OpenAIProvider(base_url=DEMO + "/v1", api_key=KEY)
scripted = OpenAIProvider(base_url=SCRIPTED + "/v1", api_key=KEY)


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


@case
def text():
    agent = Agent(OpenAIChatModel("demo", provider=demo), model_settings={"temperature": 0})
    assert "933" in agent.run_sync(QUESTION).output


@case
def an_object_by_a_tool():
    agent = Agent(OpenAIChatModel("demo", provider=demo), output_type=Weather, model_settings={"max_tokens": 400})
    assert isinstance(agent.run_sync(QUESTION).output, Weather)


@case
def an_object_by_a_schema():
    output = NativeOutput(Weather)
    agent = Agent(OpenAIChatModel("demo", provider=demo), output_type=output, model_settings={"max_tokens": 400})
    assert isinstance(agent.run_sync(QUESTION).output, Weather)


@case
def a_tool_loop():
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        agent = Agent(kind("any", provider=scripted))
        asked = []

        @agent.tool_plain
        def get_weather(city: str, days: int) -> str:
            asked.append((city, days))  # noqa: B023
            return "rain"

        assert agent.run_sync(QUESTION).output == "done", kind
        assert asked == [("Paris", 2)], asked


finish()
