"""Turns a step's result lists into the log-probability entries that clients get."""

from __future__ import annotations

from jaxinfer.messages import PromptScored, TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.step_plan import PlanRow, Scores, StepResult


def token_logprobs(i: int, accepted: int, count: int, result: StepResult) -> tuple[TokenLogprobs, ...]:
    """Entries of the first `accepted` tokens of row `i`, with `count` alternatives each."""
    scores = result.scores
    assert scores is not None, "a row asked for log-probabilities that were not fetched"
    first = sum(map(len, result.tokens[:i]))
    return tuple(_entry(token, first + j, count, scores) for j, token in enumerate(result.tokens[i][:accepted]))


def prompt_scores(row: PlanRow, offset: int, params: SamplingParams, result: StepResult) -> PromptScored:
    """The row's prompt positions; `offset` is the row's first token within the step."""
    scores, count = result.prompt_scores, params.prompt_logprobs or 0
    assert scores is not None, "a row asked for prompt log-probabilities that were not fetched"
    entries = tuple(_entry(target, offset + j, count, scores) for j, target in enumerate(row.targets))
    return PromptScored(row.request_id, row.start, entries)


def _entry(token_id: int, i: int, count: int, scores: Scores) -> TokenLogprobs:
    top = zip(scores.top_ids[i][:count], scores.top_logprobs[i][:count], strict=True)
    return TokenLogprobs(token_id, scores.logprobs[i], scores.ranks[i], tuple(top))
