"""A dispatched step, until its results are on the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxinfer.runtime.inputs import StepOutput
from jaxinfer.runtime.sampling import TokenScores
from jaxinfer.scheduling.step_plan import Scores, StepPlan, StepResult


@dataclass
class Pending:
    """A dispatched step whose results are on their way to the host.

    Of `Runner.dispatch_late` its rows draw when `draw` is called, which must be before the next step is dispatched.
    """

    plan: StepPlan
    drawing: list[int]  # the plan's rows that draw
    passed: jax.Array  # of the forward pass: ready when that is done
    output: StepOutput | None  # of the rows that draw, None where none does
    prompt: TokenScores | None
    logprobs: int  # alternatives that a drawing row asked for; -1: no row wants scores
    prompt_logprobs: int  # the same for prompts
    late: Callable[[np.ndarray | None], tuple[StepOutput | None, TokenScores | None]] | None = None
    mask_shape: tuple[int, int] = (0, 0)  # that `draw` wants

    def draw(self, masks: np.ndarray | None) -> None:
        """Starts drawing, and scoring prompts behind it. masks: None for any token; else `mask_shape` uint32, a fresh
        array that is not written again: for each of the rows that draw, in order, the tokens that it may draw (bit i of
        word w: token 32 w + i), then what nobody reads."""
        if self.late is None:
            raise RuntimeError("this step has drawn already")
        (self.output, self.prompt), self.late = self.late(masks), None

    @property
    def ready(self) -> bool:
        last: Any = self.passed if self.output is None else self.output.tokens
        return bool(last.is_ready())

    def result(self) -> StepResult:
        """Waits for the step and returns its results for the plan's rows."""
        if self.late is not None:
            raise RuntimeError("this step has not drawn yet")
        tokens: list[list[int]] = [[] for _ in self.plan.rows]
        scores = None
        if self.output is None:
            jax.block_until_ready(self.passed)
        else:
            count = len(self.drawing)
            for row, token in zip(self.drawing, np.asarray(self.output.tokens)[:count].tolist(), strict=True):
                tokens[row].append(token)
            scores = _fetch(self.output.scores, count, self.logprobs) if self.logprobs >= 0 else None
        prompt = None if self.prompt is None else _fetch(self.prompt, self.plan.num_tokens, self.prompt_logprobs)
        return StepResult(tokens, scores, prompt)


def _fetch(scores: TokenScores, count: int, alternatives: int) -> Scores:
    """The first `count` entries on the host, with as many alternatives as somebody asked for."""
    logprobs, ranks = (np.asarray(array)[:count].tolist() for array in (scores.logprobs, scores.ranks))
    if not alternatives:  # the tables stay on the device
        return Scores(logprobs, ranks, [[]] * count, [[]] * count)
    tables = (scores.top_ids, scores.top_logprobs)
    top_ids, top_logprobs = (np.asarray(array)[:count, :alternatives].tolist() for array in tables)
    return Scores(logprobs, ranks, top_ids, top_logprobs)
