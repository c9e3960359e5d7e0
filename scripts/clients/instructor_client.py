"""instructor: objects from tool calls and from JSON schemas."""

from __future__ import annotations

import instructor
import openai
import pydantic
from cases import DEMO, KEY, QUESTION, case, finish

MODES = (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA)


class Weather(pydantic.BaseModel):
    model_config = {"extra": "forbid"}  # or a model that knows nothing may add properties without end
    city: str = pydantic.Field(max_length=20)
    days: int = pydantic.Field(ge=1, le=9)


@case
def an_object_in_every_mode():
    for mode in MODES:
        client = instructor.from_openai(openai.OpenAI(base_url=DEMO + "/v1", api_key=KEY), mode=mode)
        found = client.chat.completions.create(
            model="demo", response_model=Weather, max_retries=0, max_tokens=400,
            messages=[{"role": "user", "content": QUESTION}],
        )  # fmt: skip
        assert isinstance(found, Weather), (mode, found)


finish()
