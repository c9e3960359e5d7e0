"""inspect-ai: an evaluation with a tool, and one with structured output."""

from __future__ import annotations

import tempfile

from cases import DEMO, KEY, QUESTION, SCRIPTED, case, finish
from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool


@tool
def get_weather():
    async def execute(city: str, days: int) -> str:
        """The weather of a city.

        Args:
            city: its name
            days: how many
        """
        return "rain"

    return execute


def score(target: str, url: str, name: str, *solvers) -> float:
    task = Task([Sample(QUESTION, target=target)], solver=[*solvers, generate()], scorer=includes())
    model = get_model(f"openai-api/local/{name}", base_url=url + "/v1", api_key=KEY)
    with tempfile.TemporaryDirectory() as folder:
        (log,) = eval(task, model, temperature=0, log_dir=folder, display="none")
    assert log.status == "success", log.error
    return log.results.scores[0].metrics["accuracy"].value


@case
def an_evaluation():
    assert score("933", DEMO, "demo") == 1.0


@case
def an_evaluation_with_a_tool():
    assert score("done", SCRIPTED, "any", use_tools(get_weather())) == 1.0


finish()
