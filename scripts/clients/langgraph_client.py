"""langchain-anthropic, and langchain's agents over it: graphs that call tools, objects as answers."""

from __future__ import annotations

import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, case, finish
from langchain.agents import create_agent
from langchain.agents.structured_output import ToolStrategy
from langchain_anthropic import ChatAnthropic

model = ChatAnthropic(model="demo", base_url=DEMO, api_key=KEY, temperature=0, max_tokens=400, max_retries=0)
scripted = ChatAnthropic(model="any", base_url=SCRIPTED, api_key=KEY, max_tokens=400, max_retries=0)
TURN = {"messages": [{"role": "user", "content": QUESTION}]}


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"rain in {city} for {days} days"


@case
def invoke_and_stream():
    assert "933" in model.invoke(QUESTION).text
    assert "933" in "".join(part.text for part in model.stream(QUESTION))


@case
def structured_output():
    for method in ("json_schema", "function_calling"):
        assert isinstance(model.with_structured_output(Weather, method=method).invoke(QUESTION), Weather), method


@case
def an_agent():
    turns = create_agent(scripted, tools=[get_weather], system_prompt="Be brief.").invoke(TURN)["messages"]
    assert [turn.type for turn in turns] == ["human", "ai", "tool", "ai"]
    assert (turns[2].content, turns[3].text) == ("rain in Paris for 2 days", "done")


@case
def a_streamed_agent():
    agent = create_agent(scripted, tools=[get_weather])
    parts = [part for part, _ in agent.stream(TURN, stream_mode="messages")]
    assert "".join(part.text for part in parts).endswith("done"), parts


@case
def an_agent_with_an_object():
    agent = create_agent(model, tools=[], response_format=ToolStrategy(Weather))
    assert isinstance(agent.invoke(TURN)["structured_response"], Weather)


finish()
