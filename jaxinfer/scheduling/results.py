"""Turns a step's result lists into the log-probability entries that clients get."""

from __future__ import annotations

from jaxinfer.messages import PromptScored, TokenLogprobs
from jaxinfer.sampling_params import SamplingParams
from jaxinfer.scheduling.plan import PlanRow, StepResult


def token_logprobs(i: int, count: int, result: StepResult) -> TokenLogprobs:
    """The sampled token's entry for row `i` with `count` alternatives."""
    assert result.logprobs is not None
    assert result.ranks is not None
    top: tuple[tuple[int, float], ...] = ()
    if count:
        assert result.top_ids is not None
        assert result.top_logprobs is not None
        top = tuple(zip(result.top_ids[i][:count], result.top_logprobs[i][:count], strict=True))
    return TokenLogprobs(result.tokens[i], result.logprobs[i], result.ranks[i], top)


def prompt_scores(row: PlanRow, offset: int, params: SamplingParams, result: StepResult) -> PromptScored:
    """The row's prompt positions; `offset` is the row's first token within the step."""
    assert result.prompt_logprobs is not None
    assert result.prompt_ranks is not None
    assert result.prompt_top_ids is not None
    assert result.prompt_top_logprobs is not None
    count = params.prompt_logprobs or 0
    entries = []
    for j, target in enumerate(row.targets):
        t = offset + j
        top = zip(result.prompt_top_ids[t][:count], result.prompt_top_logprobs[t][:count], strict=True)
        entries.append(TokenLogprobs(target, result.prompt_logprobs[t], result.prompt_ranks[t], tuple(top)))
    return PromptScored(row.request_id, row.start, tuple(entries))
