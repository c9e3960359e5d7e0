"""llama-index with its class for servers that speak as OpenAI: completions, chats, objects, an agent."""

from __future__ import annotations

import pydantic
from cases import DEMO, KEY, QUESTION, SCRIPTED, case, finish
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

CHATS = {"is_chat_model": True, "is_function_calling_model": True, "api_key": KEY, "max_retries": 0}
model = OpenAILike(model="demo", api_base=DEMO + "/v1", context_window=65_536, max_tokens=400, temperature=0, **CHATS)
scripted = OpenAILike(model="any", api_base=SCRIPTED + "/v1", context_window=65_536, **CHATS)


class Weather(pydantic.BaseModel):
    """The weather of a city."""

    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


def get_weather(city: str, days: int) -> str:
    """The weather of a city."""
    return f"rain in {city} for {days} days"


@case
def chats_and_streams():
    assert "933" in model.complete(QUESTION).text
    turns = [ChatMessage(role="user", content=QUESTION)]
    assert "933" in "".join(part.delta or "" for part in model.stream_chat(turns))


@case
def completions():
    plain = OpenAILike(model="demo", api_base=DEMO + "/v1", api_key=KEY, is_chat_model=False, max_tokens=8)
    assert plain.complete("Once").text
    assert "".join(part.delta or "" for part in plain.stream_complete("Once"))


@case
def objects():
    found = model.structured_predict(Weather, PromptTemplate("The weather of {city}?"), city="Paris")
    assert isinstance(found, Weather)
    assert isinstance(model.as_structured_llm(Weather).complete(QUESTION).raw, Weather)


@case
async def an_agent():
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(get_weather)], llm=scripted, system_prompt="Be brief.")
    found = await agent.run(QUESTION)
    assert str(found) == "done", found
    assert [call.tool_output.content for call in found.tool_calls] == ["rain in Paris for 2 days"]


finish()
