"""litellm, as a library: through OpenAI's interface and through Anthropic's."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # no download of prices

import litellm
from cases import DEMO, KEY, QUESTION, SCRIPTED, TOOL, case, check_weather, finish

ASK = [{"role": "user", "content": QUESTION}]
TOOLS = [{"type": "function", "function": TOOL}]
DEMO_MODEL = {"model": "hosted_vllm/demo", "api_base": DEMO + "/v1", "api_key": KEY}


@case
def completion():
    answer = litellm.completion(messages=ASK, temperature=0, **DEMO_MODEL)
    assert "933" in answer.choices[0].message.content


@case
def a_stream():
    parts = litellm.completion(messages=ASK, temperature=0, stream=True, **DEMO_MODEL)
    assert "933" in "".join(part.choices[0].delta.content or "" for part in parts)


@case
def a_required_tool():
    answer = litellm.completion(messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=400, **DEMO_MODEL)
    check_weather(answer.choices[0].message.tool_calls[0].function.arguments)


@case
def a_json_schema():
    form = {"type": "json_schema", "json_schema": {"name": "w", "schema": TOOL["parameters"], "strict": True}}
    answer = litellm.completion(messages=ASK, response_format=form, max_tokens=400, **DEMO_MODEL)
    check_weather(answer.choices[0].message.content)


@case
def responses():
    answer = litellm.responses(
        model="openai/demo", input=QUESTION, api_base=DEMO + "/v1", api_key=KEY, temperature=0,
        reasoning={"effort": "low", "summary": "auto"}, include=["reasoning.encrypted_content"],
    )  # fmt: skip
    texts = [part.text for item in answer.output if item.type == "message" for part in item.content]
    assert "933" in "".join(texts), answer


@case
def anthropics_interface():
    answer = litellm.completion(
        model="anthropic/demo", messages=ASK, api_base=DEMO, api_key=KEY, temperature=0, max_tokens=100
    )
    assert "933" in answer.choices[0].message.content


@case
def a_tool_call_of_the_model():
    answer = litellm.completion(
        model="hosted_vllm/any", api_base=SCRIPTED + "/v1", api_key=KEY, messages=ASK, tools=TOOLS
    )
    check_weather(answer.choices[0].message.tool_calls[0].function.arguments)


finish()
