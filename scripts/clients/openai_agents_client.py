"""openai-agents: tools, handoffs and output types, over chat and over responses."""

from __future__ import annotations

import agents
import openai
import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, case, finish

agents.set_tracing_disabled(True)
KINDS = (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel)


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


def connect(url: str) -> openai.AsyncOpenAI:
    """A client for one case: each has an event loop of its own."""
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key=KEY, max_retries=0)


@agents.function_tool
def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"rain in {city} for {days} days"


@case
async def a_tool_loop():
    for kind in KINDS:
        agent = agents.Agent("helper", tools=[get_weather], model=kind("any", connect(SCRIPTED)))
        assert (await agents.Runner.run(agent, QUESTION)).final_output == "done", kind


@case
async def a_streamed_tool_loop():
    for kind in KINDS:
        agent = agents.Agent("helper", tools=[get_weather], model=kind("any", connect(SCRIPTED)))
        run = agents.Runner.run_streamed(agent, QUESTION)
        async for _ in run.stream_events():
            continue
        assert run.final_output == "done", kind


@case
async def an_output_type():
    settings = agents.ModelSettings(max_tokens=400)
    for kind in KINDS:
        agent = agents.Agent("helper", output_type=Weather, model=kind("demo", connect(DEMO)), model_settings=settings)
        assert isinstance((await agents.Runner.run(agent, QUESTION)).final_output, Weather), kind


finish()
